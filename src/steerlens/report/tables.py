"""Tables and sentences on a console, in which nothing is cut.

In a pipe or a file every line is whole, however long. In a terminal the last column is wrapped
beside the others; where it has no room for these, every row is a paragraph of names and cells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from steerlens.report.concept_page import NARROWEST, Line, print_hanging

UNBOUNDED = 1_000_000
"""Columns of a line that nothing wraps."""


def print_sentences(console: Console, sentences: Iterable[str | Text]) -> None:
    """Print sentences whole, in a terminal wrapped between words."""
    texts = (Text(sentence) if isinstance(sentence, str) else sentence for sentence in sentences)
    print_hanging(console, (Line("", text) for text in texts))


def print_table(
    console: Console,
    title: str,
    columns: Mapping[str, Sequence[str]],
    left_justified: Collection[str] = (),
    last: tuple[str, Sequence[Sequence[str]]] | None = None,
) -> None:
    """Print `columns`, by title, and behind them the column `last`.

    Args:
        console: where to.
        title: above the table.
        columns: cells that are never wrapped.
        left_justified: those of `columns` that are justified left, as texts are; numbers are right.
        last: title and cells of the column that may be wrapped, each of one or several lines.
    """
    # What no row has filled is left out.
    filled = {name: cells for name, cells in columns.items() if set(cells) - {"-", ""}}
    used_width = sum(2 + max(map(cell_len, [name, *cells])) for name, cells in filled.items())
    if console.is_terminal and used_width + (NARROWEST if last else 0) > console.width:
        print_hanging(console, _paragraphs(title, filled, last))
        return
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in filled:
        table.add_column(
            Text(name), justify="left" if name in left_justified else "right", no_wrap=True
        )
    rows = list(zip(*filled.values(), strict=True))
    if last:
        name, texts = last
        table.add_column(Text(name), overflow="fold")
        rows = [(*row, "\n".join(lines)) for row, lines in zip(rows, texts, strict=True)]
    for row in rows:
        # Text, not str: rich would read a token such as [red] as markup.
        table.add_row(*map(Text, row))
    unbounded = console.options.update(width=UNBOUNDED)
    width = console.measure(table, options=unbounded).maximum
    if console.is_terminal:
        width = min(width, console.width)
    for segments in console.render_lines(table, console.options.update(width=width), pad=False):
        console.print(_text(segments), soft_wrap=True)


def _text(segments: Iterable[Segment]) -> Text:
    line = Text()
    for segment in segments:
        line.append(segment.text, segment.style)
    line.rstrip()
    return line


def _paragraphs(
    title: str,
    columns: Mapping[str, Sequence[str]],
    last: tuple[str, Sequence[Sequence[str]]] | None,
) -> Iterator[Line]:
    """Yield every row as a line of its filled cells, and below it those of the last column."""
    if title:
        yield Line("", Text(title))
    rows = list(zip(*columns.values(), strict=True))
    texts: Sequence[Sequence[str]] = last[1] if last else [()] * len(rows)
    for row, lines in zip(rows, texts, strict=True):
        cells = [
            f"{name} {cell}"
            for name, cell in zip(columns, row, strict=True)
            if cell not in ("-", "")
        ]
        yield Line("", Text(", ".join(cells)))
        for line in lines:
            yield Line("    ", Text(line))
