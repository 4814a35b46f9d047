"""`steerlens report DIR`: draw a finished run again from its tables, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.analysis.ranking import best_features, title_of
from steerlens.analysis.resampling import LEVEL
from steerlens.analysis.series import Series
from steerlens.analysis.summary import MEANINGS, SCORES, THRESHOLDS, summarise
from steerlens.errors import SteerlensError
from steerlens.report.answer import answer_section
from steerlens.report.concept_page import is_of_a_concept
from steerlens.report.coverage import words_section
from steerlens.report.reference import reference_section
from steerlens.report.steering import steering_sections
from steerlens.report.studies import write_answer
from steerlens.report.toward import candidates_section, toward_sections
from steerlens.results import FEATURES, REPORT_FILE, SUMMARY_FILE
from steerlens.results.folder import RunTables, read_tables, unfinished
from steerlens.results.status import read_status
from steerlens.results.text import (
    markdown,
    markdown_table,
    number,
    visible,
    visible_token,
    visible_tokens,
)
from steerlens.storage.files import CONFIG_FILE, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.report.page.contents import Overview

BEST_ROWS = 20


def report(folder: Path) -> None:
    """Redraw the figures of the run in `folder`, rewrite its summary and reports, show both.

    Raises:
        SteerlensError: there are no tables, or they can't be read; the page of a run says it, too.
    """
    # Matplotlib and rich only after the folder is known to hold a run: refusing stays quick.
    folder = Path(folder)
    try:
        tables = _read(folder)
    except SteerlensError as error:
        if read_status(folder) or (folder / CONFIG_FILE).is_file():
            from steerlens.report.page import write_page_without_tables

            write_page_without_tables(f"{error}", folder)
        raise
    from steerlens.report.terminal import print_summary

    summary, _ = write_report(tables, folder)
    print_summary(tables, summary, folder)


def write_report(
    tables: RunTables, folder: Path, page: bool = True
) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Write all that follows from the tables alone; gives the summary and the figures' files.

    Args:
        tables: what lies in `folder`.
        folder: of the run.
        page: write `report.html`, too.
    """
    from steerlens.report.figures import draw_all

    figures = draw_all(tables, folder)
    this_run = Series("this run", [], tables)
    if tables.reference and not tables.reference.alone:
        from steerlens.report.figures.overlay import draw_overlay

        published = Series("published", [], RunTables(tables.reference.table))
        figures |= draw_overlay([this_run, published], folder)
    study, drawn = write_answer([this_run], folder)
    figures |= drawn
    summary = summarise(tables) | {"study": study}
    write_json(folder / SUMMARY_FILE, summary)
    write_text(folder / REPORT_FILE, report_text(tables, summary, figures, folder))
    if page:
        from steerlens.report.page import write_run_page

        write_run_page(tables, summary, folder)
    return summary, figures


def _read(folder: Path) -> RunTables:
    if not (folder / FEATURES.file).is_file():
        near = _newest_run_near(folder)
        hint = f"the newest run is {near}." if near else "give the folder of a finished run."
        state = read_status(folder).get("state")
        state_of_run = f"its run is {state} and" if state else "it"
        raise SteerlensError(
            f"{folder} can't be reported: {state_of_run} has no {FEATURES.file}; {hint}"
        )
    return replace(read_tables(folder), unfinished=unfinished(folder))


def _newest_run_near(folder: Path) -> Path | None:
    """Return the newest run below `folder`, else below `outputs`; looks a few levels down only."""
    for root in (folder, Path("outputs")):
        folders = [
            path
            for depth in ("*", "*/*", "*/*/*")
            for path in root.glob(f"{depth}/{FEATURES.file}")
        ]
        if folders:
            return max(folders, key=lambda path: path.stat().st_mtime).parent
    return None


def report_text(
    tables: RunTables,
    summary: Mapping[str, Any],
    figures: Mapping[str, Sequence[Path]],
    folder: Path,
) -> str:
    """Return the report in Markdown: what was measured, the figures, a table by layer, the best
    features, and what steering with them did.

    It depends on the results only, not on the time, so that reporting twice changes nothing.
    """
    pictures = [
        f"![{name.replace('_', ' ')}]({path.relative_to(folder).as_posix()})"
        for name, paths in figures.items()
        for path in paths
        if path.suffix == ".png"
    ]
    from steerlens.report.page.overview import run_overview

    top = _top(tables, run_overview(tables, summary, folder))
    if is_of_a_concept(tables):
        (word,) = summary["words"]
        title = f"# {_names(summary['model'])}: steering toward {markdown(visible(word['word']))}"
        sections = [*toward_sections(tables), *pictures, *candidates_section(tables)]
        return "\n\n".join([title, *top, *sections]) + "\n"
    parts = [
        f"# {_names(summary['model'])} with {_names(summary['sae'])}",
        *top,
        *answer_section(summary.get("study"), with_sentences=False),
        *pictures,
    ]
    if len(tables.words):
        parts += ["## Steering toward words", *toward_sections(tables)]
    if by := summary["ranked_by"]:
        parts += [
            "## By layer",
            _layer_table([*summary["layers"], {"layer": "all", **summary["overall"]}]),
            f"## {markdown(visible(title_of(by)))}",
            _best_table(best_features(tables.features, BEST_ROWS), by),
        ]
    parts += reference_section(tables)
    if summary["steering"] and not len(tables.words):
        parts += steering_sections(tables, summary["steering"])
    parts += words_section(tables.coverage)
    return "\n\n".join(parts) + "\n"


def _top(tables: RunTables, overview: Overview) -> list[str]:
    """Say what the page says at its top: whether the run has come to its end, what was run, what
    came out, and the command; not when it was, so that reporting twice changes nothing.
    """
    return [
        *([f"**{markdown(overview.state)}.**"] if tables.unfinished else []),
        markdown(overview.question),
        *(markdown(note) for note in overview.notes),
        "\n".join(f"- {markdown(sentence)}" for sentence in overview.sentences),
        *([f"    {overview.command}"] if overview.command else []),
    ]


def _names(names: str | list[str] | None) -> str:
    names = [names] if isinstance(names, str) else names or ["?"]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return markdown(visible(", ".join(names[:3]))) + more


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> str:
    columns = [(name, symbol) for name, symbol, _ in MEANINGS]
    has_null = any(layer["output_score_null_count"] for layer in layers)
    if has_null:
        columns.insert(1, ("output_score_null", "random"))
    header = ["layer", "features"]
    for _, symbol in columns:
        header += [f"{symbol} q25", "median", "q75", *(f">= {t:g}" for t in THRESHOLDS)]
    if has_null:
        header += [markdown(f"{name} <= {LEVEL:g}") for name in "pq"]
    rows = []
    for layer in layers:
        row = [str(layer["layer"]), f"{layer['features']:,}"]
        for column, _ in columns:
            quartiles = [layer[f"{column}_{key}"] for key in ("q25", "median", "q75")]
            shares = [layer[f"{column}_at_least_{threshold:g}"] for threshold in THRESHOLDS]
            row += [number(quartile, ".3g") for quartile in quartiles]
            row += [number(share, ".1%") for share in shares]
        if has_null:
            shares = [layer[f"output_score_{name}_at_most_{LEVEL:g}"] for name in "pq"]
            row += [number(share, ".1%") for share in shares]
        rows.append(row)
    return markdown_table(header, rows)


def _best_table(best: pd.DataFrame, by: str) -> str:
    numbers = {"S_out": ("output_score", ".2f"), "S_in": ("input_score", ".2f")}
    if by not in SCORES:
        numbers = {markdown(visible(by)): (by, ".4g"), **numbers}
    first_examples = [
        next(iter(examples), "") if hasattr(examples, "__len__") else ""  # or null
        for examples in best["input_top_examples"]
    ]
    rows = [
        [
            str(row["layer"]),
            str(row["feature"]),
            *(number(row[name], spec) for name, spec in numbers.values()),
            markdown(visible_token(row["output_token"])),
            markdown(visible_tokens(row["logit_lens_tokens"], 8)),
            markdown(visible(example)),
        ]
        for row, example in zip(best.to_dict("records"), first_examples, strict=True)
    ]
    return markdown_table(["layer", "feature", *numbers, "token", "logit lens", "fires on"], rows)
