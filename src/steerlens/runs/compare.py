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
from steerlens.report.page import write_comparison_page
from steerlens.report.page.contents import PlainTable
from steerlens.report.tables import print_sentences
from steerlens.report.terminal import console_on
from steerlens.results import REPORT_FILE, SUMMARY_FILE
from steerlens.results.status import LEFT_OUT, refuse_foreign
from steerlens.results.text import markdown, markdown_table, visible
from steerlens.runs.sweep.jobs import find_jobs, settings_of
from steerlens.runs.sweep.join import read_series
from steerlens.storage.files import make_folder, write_json, write_text

Differences = list[tuple[str, str, str]]
"""Setting, its values on the one side and on the other."""


def compare(first_folder: Path, other_folder: Path, into: Path) -> None:
    """Write into the folder `into`, and prints, in what two results differ and how far they agree:
    `report.html`, `report.md`, `summary.json` and `figures/` with both in each.

    Results of two sweeps are compared where their labels (the settings that their own jobs differ
    in) are the same; a run is compared with every one of a sweep's.

    Raises:
        SteerlensError: a folder holds no finished run, or the two have no result in common.
    """
    sides = [read_series(folder) for folder in (first_folder, other_folder)]
    unfinished = [
        f"{folder}: {line}"
        for folder in (first_folder, other_folder)
        for line in _unfinished(folder)
    ]
    for folder, series in zip((first_folder, other_folder), sides, strict=True):
        if not series:
            why = next(iter(_unfinished(folder)), "`steerlens join` says why")
            raise SteerlensError(f"{folder} holds no finished run: {why}.")
    refuse_foreign(into)
    differences = _differences(first_folder, other_folder)
    pairs = _pairs(*sides)
    agreements_of = {
        label: agreement(first.tables.features, second.tables.features)
        for label, first, second in pairs
    }
    judged = {
        label: judges_agreement(first.tables.ratings, second.tables.ratings)
        for label, first, second in pairs
    }
    make_folder(into)
    names = _names((first_folder, other_folder))
    labelled = _labelled(names, sides)
    figures = draw_overlay(labelled, into)
    summary = {
        "compared": [str(first_folder), str(other_folder)],
        "settings": {key: list(values) for key, *values in differences},
        "agreement": {label: plain(each) for label, each in agreements_of.items()},
        "judges": {
            label: {aspect: plain(agreement) for aspect, agreement in each.items()}
            for label, each in judged.items()
            if each
        },
        "series": [{"label": each.label, **summarise(each.tables)} for each in labelled],
    }
    write_json(into / SUMMARY_FILE, summary)
    sentences_of = {
        label: [*agreement_lines(agreements_of[label]), *judges_lines(judged[label])]
        for label in agreements_of
    }
    write_text(
        into / REPORT_FILE,
        _report(unfinished, names, differences, agreements_of, sentences_of, figures, into),
    )
    rows = [[visible(cell) for cell in row] for row in differences]
    settings = PlainTable("Settings", ["setting", *map(visible, names)], rows)
    lines = [line for each in sentences_of.values() for line in each]
    write_comparison_page(settings, lines, unfinished, labelled, summary, into)
    _print(unfinished, differences, sentences_of, into)


def _unfinished(folder: Path) -> list[str]:
    """Return what of a run or a sweep isn't done, in words."""
    jobs = find_jobs(folder)
    unfinished_jobs = [job for job in jobs if job.state not in ("done", LEFT_OUT)]
    return [
        f"{f'job {job.name} ' * (len(jobs) > 1)}{job.state}: {job.reason}"
        for job in unfinished_jobs
    ]


def _differences(folder: Path, other_folder: Path) -> Differences:
    """Return the settings of which the two sides don't have the same values."""
    sides: list[dict[str, set[str]]] = []
    jobs = {side: find_jobs(side) for side in (folder, other_folder)}
    named = [
        job.renamed(f"{side} {job.name}")
        for side, members in enumerate(jobs.values())
        for job in members
    ]
    settings = settings_of(named, resolved=True)
    for side_index in range(2):
        values: dict[str, set[str]] = {}
        for name, setting_values in settings.items():
            if name.startswith(f"{side_index} "):
                for key, value in setting_values.items():
                    values.setdefault(key, set()).add(value)
        sides.append(values)
    keys = dict.fromkeys([*sides[0], *sides[1]])
    both_sides = {key: [", ".join(sorted(side.get(key, {"-"}))) for side in sides] for key in keys}
    return [(key, first, second) for key, (first, second) in both_sides.items() if first != second]


def _pairs(
    members: Sequence[Series], other_members: Sequence[Series]
) -> list[tuple[str, Series, Series]]:
    if len(members) == 1 or len(other_members) == 1:
        pairs = [(member, other_member) for member in members for other_member in other_members]
    else:
        by_label = {member.label: member for member in other_members}
        pairs = [(member, by_label[member.label]) for member in members if member.label in by_label]
    if not pairs:
        raise SteerlensError(
            f"the sweeps have no result in common: one has {members[0].label}, the other "
            f"{other_members[0].label}."
        )
    label = "{one.label}" if len(other_members) == 1 else "{other.label}"
    return [
        (label.format(one=member, other=other_member), member, other_member)
        for member, other_member in pairs
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the folders' paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    length = next(n for n in range(1, 99) if parts[0][-n:] != parts[1][-n:] or n == 98)
    return ["/".join(part[-length:]) for part in parts]


def _labelled(names: Sequence[str], sides: Sequence[Sequence[Series]]) -> list[Series]:
    """Return all results, each under the name of its side."""
    labelled = []
    for name, side in zip(names, sides, strict=True):
        for member in side:
            label = f"{name}: {member.label}" if len(side) > 1 else name
            labelled.append(Series(label, member.jobs, member.tables))
    return labelled


def _report(
    unfinished: Sequence[str],
    names: Sequence[str],
    differences: Differences,
    agreements_of: Mapping[str, Sequence[Agreement]],
    sentences_of: Mapping[str, Sequence[str]],
    figures: Mapping[str, Sequence[Path]],
    folder: Path,
) -> str:
    def display(text: str) -> str:
        return markdown(visible(text))

    parts = ["# Two results side by side", *(f"**{display(line)}.**" for line in unfinished)]
    parts.append("## Settings")
    rows = [[display(cell) for cell in row] for row in differences]
    header = ["setting", *map(display, names)]
    parts.append(markdown_table(header, rows) if rows else "No difference.")
    for label, each in agreements_of.items():
        table = agreement_table(each, [*map(display, names)])
        parts += [f"## Agreement: {display(label)}", table or "No score in common."]
        parts += ["\n".join(f"- {display(line)}" for line in sentences_of[label])]
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
    sentences_of: Mapping[str, Sequence[str]],
    folder: Path,
) -> None:
    console = console_on(sys.stdout)
    lines: list[Any] = [f"{key}: {first} | {second}" for key, first, second in differences]
    lines = [*unfinished, *(lines or ["The settings are the same."])]
    for label, each in sentences_of.items():
        lines += [f"{label}:"] if len(sentences_of) > 1 else []
        lines += each or ["No feature has the same score on both sides."]
    print_sentences(console, map(visible, lines))
    console.print(Text(f"Results: {visible(str(folder))}"), soft_wrap=True)
