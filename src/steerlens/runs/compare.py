"""`steerlens compare DIR DIR`: two finished runs or sweeps side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from steerlens.analysis.agreement import Agreement, agreement
from steerlens.analysis.rated_arms import judges_agreement
from steerlens.analysis.resampling import plain
from steerlens.analysis.series import Series
from steerlens.analysis.summary import summarise
from steerlens.errors import SteerlensError
from steerlens.report.agreement import agreement_lines, agreement_table, judges_lines
from steerlens.report.figures.overlay import draw_overlay
from steerlens.report.terminal import console_on
from steerlens.results import REPORT_FILE, SUMMARY_FILE
from steerlens.results.status import LEFT_OUT, refuse_foreign
from steerlens.results.text import markdown, markdown_table, visible
from steerlens.runs.sweep.jobs import find_jobs, settings_of
from steerlens.runs.sweep.join import read_series
from steerlens.storage.files import make_folder, write_json, write_text

Differences = list[tuple[str, str, str]]
"""Setting, its values on the one side and on the other."""


def compare(one: Path, other: Path, into: Path) -> None:
    """Writes into the folder `into`, and prints, in what two results differ and how far they agree:
    `report.md`, `summary.json` and `figures/` with both in each.

    Results of two sweeps are compared where their labels (the settings that their own jobs differ
    in) are the same; a run is compared with every one of a sweep's.

    Raises:
        SteerlensError: a folder holds no finished run, or the two have no result in common.
    """
    sides = [read_series(folder) for folder in (one, other)]
    unfinished = [f"{folder}: {line}" for folder in (one, other) for line in _unfinished(folder)]
    for folder, series in zip((one, other), sides, strict=True):
        if not series:
            why = next(iter(_unfinished(folder)), "`steerlens join` says why")
            raise SteerlensError(f"{folder} holds no finished run: {why}.")
    refuse_foreign(into)
    differences = _differences(one, other)
    pairs = _pairs(*sides)
    found = {
        label: agreement(first.tables.features, second.tables.features)
        for label, first, second in pairs
    }
    judged = {
        label: judges_agreement(first.tables.ratings, second.tables.ratings)
        for label, first, second in pairs
    }
    make_folder(into)
    labelled = _labelled((one, other), sides)
    figures = draw_overlay(labelled, into)
    summary = {
        "compared": [str(one), str(other)],
        "settings": {key: list(values) for key, *values in differences},
        "agreement": {label: plain(each) for label, each in found.items()},
        "judges": {
            label: {aspect: plain(one) for aspect, one in each.items()}
            for label, each in judged.items()
            if each
        },
        "series": [{"label": each.label, **summarise(each.tables)} for each in labelled],
    }
    write_json(into / SUMMARY_FILE, summary)
    said = {
        label: [*agreement_lines(found[label]), *judges_lines(judged[label])] for label in found
    }
    write_text(into / REPORT_FILE, _report(unfinished, differences, found, said, figures, into))
    _print(unfinished, differences, said, into)


def _unfinished(folder: Path) -> list[str]:
    """What of a run or a sweep isn't done, in words."""
    jobs = find_jobs(folder)
    left = [job for job in jobs if job.state not in ("done", LEFT_OUT)]
    return [f"{f'job {job.name} ' * (len(jobs) > 1)}{job.state}: {job.reason}" for job in left]


def _differences(one: Path, other: Path) -> Differences:
    """The settings of which the two sides don't have the same values."""
    sides: list[dict[str, set[str]]] = []
    jobs = {side: find_jobs(side) for side in (one, other)}
    named = [
        job.renamed(f"{place} {job.name}")
        for place, members in enumerate(jobs.values())
        for job in members
    ]
    settings = settings_of(named, resolved=True)
    for place in range(2):
        values: dict[str, set[str]] = {}
        for name, said in settings.items():
            if name.startswith(f"{place} "):
                for key, value in said.items():
                    values.setdefault(key, set()).add(value)
        sides.append(values)
    keys = dict.fromkeys([*sides[0], *sides[1]])
    shown = {key: [", ".join(sorted(side.get(key, {"-"}))) for side in sides] for key in keys}
    return [(key, first, second) for key, (first, second) in shown.items() if first != second]


def _pairs(ones: Sequence[Series], others: Sequence[Series]) -> list[tuple[str, Series, Series]]:
    if len(ones) == 1 or len(others) == 1:
        pairs = [(one, other) for one in ones for other in others]
    else:
        by_label = {other.label: other for other in others}
        pairs = [(one, by_label[one.label]) for one in ones if one.label in by_label]
    if not pairs:
        raise SteerlensError(
            f"the sweeps have no result in common: one has {ones[0].label}, the other "
            f"{others[0].label}."
        )
    label = "{one.label}" if len(others) == 1 else "{other.label}"
    return [(label.format(one=one, other=other), one, other) for one, other in pairs]


def _labelled(folders: Sequence[Path], sides: Sequence[Sequence[Series]]) -> list[Series]:
    """All results, each under the shortest end of its folder's path that tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    length = next(n for n in range(1, 99) if parts[0][-n:] != parts[1][-n:] or n == 98)
    found = []
    for part, side in zip(parts, sides, strict=True):
        end = "/".join(part[-length:])
        for one in side:
            label = f"{end}: {one.label}" if len(side) > 1 else end
            found.append(Series(label, one.jobs, one.tables))
    return found


def _report(
    unfinished: Sequence[str],
    differences: Differences,
    found: Mapping[str, Sequence[Agreement]],
    said: Mapping[str, Sequence[str]],
    figures: Mapping[str, Sequence[Path]],
    folder: Path,
) -> str:
    def shown(text: str) -> str:
        return markdown(visible(text))

    parts = ["# Two results side by side", *(f"**{shown(line)}.**" for line in unfinished)]
    parts.append("## Settings")
    rows = [[shown(cell) for cell in row] for row in differences]
    parts.append(markdown_table(["setting", "one", "other"], rows) if rows else "No difference.")
    for label, each in found.items():
        parts += [f"## Agreement: {shown(label)}", agreement_table(each) or "No score in common."]
        parts += ["\n".join(f"- {shown(line)}" for line in said[label])]
    parts += [
        f"![{name.replace('_', ' ')}]({path.relative_to(folder).as_posix()})"
        for name, paths in figures.items()
        for path in paths
        if path.suffix == ".png"
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _print(
    unfinished: Sequence[str],
    differences: Differences,
    said: Mapping[str, Sequence[str]],
    folder: Path,
) -> None:
    console = console_on(sys.stdout)
    lines: list[Any] = [f"{key}: {one} | {other}" for key, one, other in differences]
    lines = [*unfinished, *(lines or ["The settings are the same."])]
    for label, each in said.items():
        lines += [f"{label}:"] if len(said) > 1 else []
        lines += each or ["No feature has the same score on both sides."]
    for line in [*lines, f"Results: {folder}"]:
        console.print(Text(visible(line)), soft_wrap=True)
