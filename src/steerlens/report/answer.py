"""What the study of a run or a sweep has found, in the report and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from steerlens.report.tables import print_sentences, print_table
from steerlens.results.text import markdown, markdown_table, visible, with_interval

MOST_ROWS = 30
"""Rows of a study's table in the report; its file has the others."""


def answer_section(study: Mapping[str, Any] | None, with_sentences: bool = True) -> list[str]:
    """Return the report's parts on the study, if there is one; `with_sentences` where the report
    doesn't have them before.
    """
    if study is None:
        return []
    parts = [f"## {markdown(visible(study['name'])).capitalize()}"]
    if with_sentences:
        parts.append("\n".join(f"- {markdown(visible(line))}" for line in study["sentences"]))
    for name, rows in study["tables"].items():
        if rows:
            header, cells = answer_cells(rows[:MOST_ROWS])
            cells = [[markdown(cell) for cell in row] for row in cells]
            is_long = len(rows) > MOST_ROWS
            shown = f", the first {MOST_ROWS} of {len(rows)} rows" if is_long else ""
            table = markdown_table([markdown(title) for title in header], cells)
            parts += [f"`{name}.csv`{shown}", table]
    return parts


def print_answer(study: Mapping[str, Any] | None, console: Console) -> None:
    """Show the study's first table, and its sentences."""
    if study is None:
        return
    rows = next(iter(study["tables"].values()), [])
    if rows:
        header, cells = answer_cells(rows)
        columns = dict(zip(map(visible, header), zip(*cells, strict=True), strict=True))
        print_table(console, "", columns, left_justified=columns)
    print_sentences(console, map(visible, study["sentences"]))


def answer_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return titles and cells, each number with its interval where there is one."""
    names = [name for name in rows[0] if not name.endswith(("_low", "_high"))]
    return names, [[_cell(row, name) for name in names] for row in rows]


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "-"
    if isinstance(value, float):
        return with_interval(value, low, high, ".3g")
    return visible(str(value))
