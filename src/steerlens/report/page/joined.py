"""The pages of a sweep and of a comparison: results over each other, jobs, what failed and why."""

from __future__ import annotations

import base64
import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerlens.analysis.series import Series
from steerlens.report.answer import answer_cells
from steerlens.report.concept_page import is_of_a_concept
from steerlens.report.page.cards import card_order, cards, n_in_the_page
from steerlens.report.page.concepts import concept_results
from steerlens.report.page.contents import Drawn, Overview, Page, PlainTable, SeriesScores
from steerlens.report.page.overview import key_numbers, run_sentences, run_title
from steerlens.report.page.ratings import ratings
from steerlens.report.page.render import write_html
from steerlens.report.page.scores import feature_table, layer_scores, threshold_points
from steerlens.results.text import visible
from steerlens.storage.files import SWEEP_FILE, read_json


def write_sweep_page(
    title: str,
    jobs: PlainTable,
    series: Sequence[Series],
    summary: Mapping[str, Any],
    folder: Path,
) -> Path:
    """Write the page of the joined sweep in `folder`: its jobs, and what they found.

    Where all jobs are parts of one result, that is shown as a run's is.
    """
    study = summary.get("study")
    notes = [f"Job {name} {why}." for name, why in summary["failed"].items()]
    notes += [f"{line}." for line in summary["left_out"]]
    page = Page(
        title=visible(title),
        overview=_overview("sweep", title, study, notes, folder),
        tables=[*answer_tables(study), jobs],
        figures=answer_figures(study, folder),
        series=_series(series, summary["series"]),
    )
    if len(series) != 1:
        return write_html(page, (), 0, folder)
    tables = series[0].tables
    of_run = summary["series"][0]
    order = card_order(tables)
    sentences = run_sentences(tables, {**of_run, "study": study})
    page = dataclasses.replace(
        page,
        title=visible(run_title(of_run)),
        overview=dataclasses.replace(
            page.overview,
            sentences=list(map(visible, sentences)),
            key_numbers=[*key_numbers(tables, of_run)],
        ),
        features=feature_table(tables),
        ranked_by=of_run.get("ranked_by"),
        layers=[] if is_of_a_concept(tables) else layer_scores(tables),
        thresholds=[] if len(tables.words) else threshold_points(of_run.get("steering")),
        concepts=concept_results(tables, is_of_a_concept(tables)),
        ratings=ratings(tables, study),
        series=[],
    )
    return write_html(page, cards(tables, order), n_in_the_page(tables, order), folder)


def write_comparison_page(
    differences: PlainTable,
    sentences: Sequence[str],
    unfinished: Sequence[str],
    series: Sequence[Series],
    summary: Mapping[str, Any],
    folder: Path,
) -> Path:
    """Write the page of two results over each other."""
    names = " and ".join(str(name) for name in summary["compared"])
    page = Page(
        title="Two results side by side",
        overview=Overview(
            kind="comparison",
            question=visible(f"{names}, over each other."),
            sentences=list(map(visible, sentences)),
            notes=[visible(f"{line}.") for line in unfinished],
            state="done",
            command=visible(shlex.join(["steerlens", "compare", *summary["compared"]])),
            facts=[],
        ),
        tables=[differences],
        series=_series(series, summary["series"]),
    )
    return write_html(page, (), 0, folder)


def _overview(
    kind: str, counted: str, study: Mapping[str, Any] | None, notes: Sequence[str], folder: Path
) -> Overview:
    record = read_json(folder / SWEEP_FILE)
    words = record.get("command") if isinstance(record, dict) else None
    purpose = f", for the study {study['name']}" if study else ""
    return Overview(
        kind=kind,
        question=visible(f"A sweep of {counted}{purpose}."),
        sentences=[visible(line) for line in (study or {}).get("sentences", [])],
        notes=[visible(line) for line in notes],
        state="done",
        command=visible(shlex.join(["steerlens", "-m", *map(str, words)])) if words else None,
        facts=[],
    )


def _series(series: Sequence[Series], summaries: Sequence[Mapping[str, Any]]) -> list[SeriesScores]:
    return [
        SeriesScores(
            label=visible(member.label),
            layers=layer_scores(member.tables),
            thresholds=threshold_points(summary.get("steering")),
        )
        for member, summary in zip(series, summaries, strict=True)
    ]


def answer_tables(study: Mapping[str, Any] | None) -> list[PlainTable]:
    """Give the tables of the study, as the report has them."""
    tables = (study or {}).get("tables") or {}
    return [
        PlainTable(_title(str(name)).capitalize(), list(map(_title, header)), _cells(cells))
        for name, rows in tables.items()
        if rows
        for header, cells in [answer_cells(rows)]
    ]


def _title(key: str) -> str:
    """Return what the page calls a column or a table of a study."""
    if of_share := re.fullmatch(r"(\w+)_(0\.\d+)", key):
        return f"{of_share[1].replace('_', ' ')}, first {float(of_share[2]):.0%}"
    return visible(key).replace("_", " ")


def _cells(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    yes_or_no = {"True": "yes", "False": "no"}
    return [[yes_or_no.get(cell, cell) for cell in row] for row in rows]


def answer_figures(study: Mapping[str, Any] | None, folder: Path) -> list[Drawn]:
    """Give the figures of the study that were drawn in `folder`."""
    figures = []
    for name in (study or {}).get("figures") or []:
        path = folder / "figures" / f"{name}.png"
        if re.fullmatch(r"\w+", str(name)) and path.is_file():
            png = base64.b64encode(path.read_bytes()).decode()
            figures.append(Drawn(_title(name).capitalize(), f"data:image/png;base64,{png}"))
    return figures
