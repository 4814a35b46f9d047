"""What a run shows in the terminal: a progress bar, then its best features."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from steerlens.analysis.coverage import coverage_explanation
from steerlens.analysis.ranking import best_features, ranking, title_of
from steerlens.analysis.roles import SteeredExample, best_steered, factor_cell
from steerlens.analysis.steering_summary import steering_explanation
from steerlens.analysis.summary import SCORES, explanation
from steerlens.report.answer import print_answer
from steerlens.report.concept_page import (
    concept_page,
    is_of_a_concept,
    print_hanging,
    what_to_look_at,
    words_page,
)
from steerlens.report.reference import reference_lines
from steerlens.report.tables import print_sentences, print_table
from steerlens.results.folder import RunTables
from steerlens.results.text import number, visible, visible_token, visible_tokens

if TYPE_CHECKING:
    import pandas as pd

TOLD_FROM = 1.0
"""Seconds that a phase takes at least to get a line."""


def console_on(stream: TextIO) -> Console:
    """Return a console that shows any text on `stream`."""
    # A terminal that isn't UTF-8 shows other characters as escapes instead of stopping the run.
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(file=stream)


class _Rate(ProgressColumn):
    """Finished units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{_rate(speed)} {self.unit}/s" if speed else "", style="cyan")


@contextmanager
def progress(
    total: int | None,
    description: str,
    unit: str = "features",
    console: Console | None = None,
    each: int = 1,
) -> Iterator[Callable[..., None]]:
    """Show a progress bar; call what it gives with the number of units that have just been
    finished, and the number of those that turned out not to be needed.

    With `each`, units are gone through so often, and come to `total` when all are.

    Bars may be nested. Where no one is watching (no terminal) only one line is printed, at the end.
    """
    console = console or console_on(sys.stderr)
    steps = 0
    start = time.perf_counter()
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        expand=True,
        transient=True,
    )
    with bar:
        task = bar.add_task(visible(description), total=total)

        def advance(n: int, unneeded: int = 0) -> None:
            nonlocal steps, total
            steps += n
            bar.advance(task, n / each)
            if unneeded and total is not None:
                total -= unneeded // each
                bar.update(task, total=total)

        yield advance
    seconds, n_done = time.perf_counter() - start, steps // each
    rate = f", {_rate(n_done / seconds)} {unit}/s" if seconds > 0 else ""
    line = f"{visible(description)}: {n_done:,} {unit} in {duration(seconds)}{rate}"
    console.print(Text(line), soft_wrap=True)


@contextmanager
def phase(description: str, console: Console | None = None) -> Iterator[None]:
    """Show what is being done; where no one is watching, a line tells it if it took a second."""
    console = console or console_on(sys.stderr)
    start = time.perf_counter()
    status = console.status(Text(f"{visible(description)} ...")) if console.is_terminal else None
    with status or nullcontext():
        yield
    seconds = time.perf_counter() - start
    if seconds >= TOLD_FROM:
        line = f"{visible(description)}: {duration(seconds)}"
        console.print(Text(line), soft_wrap=True)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Return `seconds` for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def print_summary(
    tables: RunTables,
    summary: Mapping[str, Any],
    folder: Path,
    console: Console | None = None,
    rows: int = 10,
) -> None:
    """Print the best features, what steering with them did, and where the files are."""
    console = console or console_on(sys.stdout)
    if tables.unfinished:
        console.print(Text(f"{visible(tables.unfinished)}."), soft_wrap=True)
    if is_of_a_concept(tables):
        print_hanging(console, concept_page(tables))
    elif summary["ranked_by"]:
        _print_best(console, tables.features, rows)
        print_sentences(console, explanation(summary))
    else:
        n = summary["overall"]["features"]
        console.print(Text(f"{n:,} feature{'s' * (n != 1)}, none with a score."))
    print_sentences(console, map(visible, tables.notes))
    print_sentences(console, map(visible, reference_lines(tables)))
    if len(tables.words) and not is_of_a_concept(tables):
        print_hanging(console, words_page(tables))
        print_hanging(console, what_to_look_at(tables, folder, console.is_terminal))
    elif summary["steering"] and not len(tables.words):
        # Each takes two lines.
        if best := best_steered(tables.steering, tables.generations, rows // 2, 1):
            _print_steered(console, best)
        print_sentences(console, steering_explanation(summary["steering"]))
    print_sentences(console, coverage_explanation(summary["coverage"]))
    print_answer(summary.get("study"), console)
    console.print(Text(f"Results: {visible(str(folder))}"), soft_wrap=True)


def _print_best(console: Console, frame: pd.DataFrame, rows: int) -> None:
    by = str(ranking(frame))
    best = best_features(frame, rows).to_dict("records")
    numbers = {
        # Ranked by something else than S_out or S_in, that has a column of its own.
        **({} if by in SCORES else {visible(by): (by, ".4g")}),
        "S_out": ("output_score", ".2f"),
        "S_in": ("input_score", ".2f"),
        "rank": ("output_rank", ",.0f"),
        "p": ("output_probability", ".4f"),
    }
    columns = {name: [str(row[name]) for row in best] for name in ("layer", "feature")}
    for name, (column, spec) in numbers.items():
        columns[name] = [number(row[column], spec) for row in best]
    columns["token"] = [visible_token(row["output_token"]) for row in best]
    lens = [[visible_tokens(row["logit_lens_tokens"], 8)] for row in best]
    print_table(console, title_of(by), columns, left_justified=["token"], last=("logit lens", lens))


def _print_steered(console: Console, best: Sequence[SteeredExample]) -> None:
    """Print the first prompt's unsteered text, and below it the one at the best factor."""
    numbers = {
        "S_out": [number(feature.output_score, ".4f") for feature in best],
        "S_in": [number(feature.input_score, ".2f") for feature in best],
        "factor": [factor_cell(feature) for feature in best],
        "success": [number(feature.success, ".2f") for feature in best],
        "perplexity": [number(feature.perplexity, ".4g") for feature in best],
    }
    columns = {"layer": [str(feature.layer) for feature in best]}
    columns |= {"feature": [str(feature.feature) for feature in best], **numbers}
    texts = [[visible(text.text) for text in feature.passages[0].continuations] for feature in best]
    title = "Best steered features, each with a text unsteered and steered"
    print_table(console, title, columns, last=("text", texts))
