"""What a joined sweep shows: a table of its jobs, figures, and a summary by series."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.text import Text

from steerlens.analysis.series import Series
from steerlens.analysis.summary import summarise
from steerlens.report.answer import answer_section, print_answer
from steerlens.report.page.contents import PlainTable
from steerlens.report.page.overview import run_sentences, run_title
from steerlens.report.studies import write_answer
from steerlens.report.tables import print_sentences, print_table
from steerlens.report.terminal import console_on
from steerlens.results import REPORT_FILE, SUMMARY_FILE
from steerlens.results.status import LEFT_OUT
from steerlens.results.text import csv_text, markdown, markdown_table, visible
from steerlens.storage.files import write_json, write_text

SWEEP_CSV = "sweep.csv"

NUMBERS = {
    "n_features": ("features", ",.0f"),
    "objective": ("objective", ".4g"),
    "output_score_median": ("S_out", ".3g"),
    "output_features": (">= 0.1", ".1%"),
    "null_output_features": ("null >= 0.1", ".1%"),
    "input_score_median": ("S_in", ".3g"),
    "success_20": ("success@20", ".3g"),
    "perplexity": ("perplexity", ".4g"),
    "payoff": ("payoff", ".2f"),
    "payoff_within_layers": ("within layers", ".2f"),
    "hybrid_ratio": ("hybrids", ".2f"),
    "seconds": ("seconds", ".0f"),
}
"""Columns of numbers, the most important first, with their titles. S_out and S_in are medians,
`null >= 0.1` is the share of random directions, `within layers` the payoff beside as many features
of the same layers, `hybrids` their share beside that of independent scores."""


def write_sweep_report(
    rows: pd.DataFrame,
    series: Sequence[Series],
    left_out: Sequence[str],
    folder: Path,
    page: bool = True,
) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Write `sweep.csv`, `summary.json`, the reports and the figures of a joined sweep.

    Args:
        rows: one row per job.
        series: what can be shown.
        left_out: what couldn't be joined, in sentences.
        folder: where to.
        page: write `report.html`, too.
    """
    from steerlens.report.figures import draw_all
    from steerlens.report.figures.overlay import draw_overlay

    write_text(folder / SWEEP_CSV, csv_text(rows))
    figures: dict[str, list[Path]] = {}
    if len(series) == 1:
        figures = draw_all(series[0].tables, folder)
    elif series:
        figures = draw_overlay(series, folder)
    study, drawn = write_answer(series, folder)
    figures |= drawn
    explained = _explained(rows)
    summary = {
        "jobs": rows["state"].value_counts().to_dict(),
        "failed": {
            row["job"]: f"{row['state']}: {row['reason']}"
            for row in explained
            if row["state"] not in ("done", LEFT_OUT)
        },
        "left_out": [
            *left_out,
            *(
                f"job {row['job']} {row['state']}: {row['reason']}"
                for row in explained
                if row["state"] in ("done", LEFT_OUT)
            ),
        ],
        "study": study,
        "series": [
            {"label": member.label, "jobs": member.jobs, **summarise(member.tables)}
            for member in series
        ],
    }
    write_json(folder / SUMMARY_FILE, summary)
    write_text(folder / REPORT_FILE, _report(rows, series, summary, figures, folder))
    if page:
        from steerlens.report.page import write_sweep_page

        columns = _columns(rows)
        cells = [list(map(visible, row)) for row in _cells(rows, columns)]
        jobs = PlainTable("Jobs", list(map(visible, columns.values())), cells)
        write_sweep_page(_counted(rows), jobs, series, summary, folder)
    return summary, figures


def _report(
    rows: pd.DataFrame,
    series: Sequence[Series],
    summary: Mapping[str, Any],
    figures: Mapping[str, Sequence[Path]],
    folder: Path,
) -> str:
    columns = _columns(rows)
    table = [[markdown(visible(cell)) for cell in cells] for cells in _cells(rows, columns)]
    failed = [
        f"- job {markdown(visible(name))} {markdown(visible(why))}"
        for name, why in summary["failed"].items()
    ]
    title, sentences = [_counted(rows)], []
    if len(series) == 1:  # parts of one result, which is told as a run's
        title.insert(0, run_title(summary["series"][0]))
        of_run = {**summary["series"][0], "study": summary["study"]}
        sentences = run_sentences(series[0].tables, of_run)
    parts = [
        f"# {markdown(visible(title[0]))}",
        *title[1:],
        *["\n".join([*failed, *(f"- {markdown(visible(job))}" for job in summary["left_out"])])],
        *["\n".join(f"- {markdown(visible(line))}" for line in sentences)],
        *answer_section(summary["study"], with_sentences=not sentences),
        *[
            f"![{name.replace('_', ' ')}]({path.relative_to(folder).as_posix()})"
            for name, paths in figures.items()
            for path in paths
            if path.suffix == ".png"
        ],
        "## Jobs",
        markdown_table([markdown(name) for name in columns.values()], table),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def print_sweep(
    rows: pd.DataFrame, series: Sequence[Series], study: Mapping[str, Any] | None, folder: Path
) -> None:
    """Print, before any number, the jobs that aren't done; then all with their main numbers,
    what the study that they were made for has found, and where the files are.
    """
    console = console_on(sys.stdout)
    lines = (f"Job {row['job']} {row['state']}: {row['reason']}" for row in _explained(rows))
    print_sentences(console, map(visible, lines))
    columns = {
        heading: [visible(cells[0]) for cells in _cells(rows, {name: heading})]
        for name, heading in _columns(rows).items()
        if name != "reason"  # which was told above
    }
    texts = [heading for name, heading in _columns(rows).items() if name not in NUMBERS]
    print_table(console, f"{_counted(rows)}; {len(series)} series", columns, left_justified=texts)
    print_answer(study, console)
    console.print(Text(f"Joined: {visible(str(folder))}"), soft_wrap=True)


def _explained(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the jobs that aren't done, and those that are with something left out."""
    return rows.loc[(rows["state"] != "done") | rows["reason"].notna()].to_dict("records")


def _counted(rows: pd.DataFrame) -> str:
    counts = rows["state"].value_counts().to_dict() if len(rows) else {}
    total = f"{len(rows):,} job{'s' * (len(rows) != 1)}"
    return f"{total}: " + ", ".join(f"{n} {state}" for state, n in counts.items())


def _columns(rows: pd.DataFrame) -> dict[str, str]:
    """Return the columns that are filled, with their titles."""
    filled = [str(name) for name in rows if any(rows[name].notna().tolist())]
    order = [name for name in filled if name not in NUMBERS] + [n for n in NUMBERS if n in filled]
    return {name: NUMBERS.get(name, (name, ""))[0] for name in order}


def _cells(rows: pd.DataFrame, columns: Mapping[str, str]) -> list[list[str]]:
    return [
        [_cell(row[name], NUMBERS[name][1] if name in NUMBERS else "") for name in columns]
        for row in rows.to_dict("records")
    ]


def _cell(value: Any, spec: str) -> str:
    if pd.isna(value):
        return "-"
    return format(value, spec) if spec else str(value)
