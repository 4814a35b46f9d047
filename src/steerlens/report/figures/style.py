"""One look for every figure.

Figures are `Figure` objects, never pyplot's: no global state, no window, no leak. Draw and save
them inside `look()`, because Matplotlib reads some settings only when it renders.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from fontTools import subset
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlens.storage.files import atomic_write, make_folder

# Okabe and Ito's palette: told apart under every common kind of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, MUTED, GREY, GRID = "#222222", "#666666", "#b8b8b8", "#dddddd"
PALETTE = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", INK)
"""All of Okabe and Ito's that are dark enough for a line."""
MARKERS = "os^vDPX"
"""Of lines that may lie over each other: what is hidden under a line shows its markers."""
SEPARATOR = "  ·  "
"""Between the parts of a subtitle."""
NAMED_BY = re.compile(r"^(?:model|sae|subject)=(?=[^,]*$)")
"""Settings whose value is a name that says what it is of."""
LAYERS = "viridis"
"""Colour map from the first layer to the last: even in lightness, so it prints in grey too."""

LOOK: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "pdf.fonttype": 42,
}


@contextmanager
def look() -> Iterator[None]:
    """Matplotlib's settings for our figures, only inside the block."""
    with matplotlib.rc_context(LOOK):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that keeps its parts from overlapping."""
    return Figure(figsize=(width, height), layout="constrained")


def headline(figure: Figure, title: str, counted: str, computed: str) -> None:
    """Write what the figure shows, in bold, and under it what it needs to be read.

    Args:
        figure: with all its axes.
        title: what it shows.
        counted: what was measured, and how many of it.
        computed: what the points, lines and intervals are.
    """
    width, height = figure.get_size_inches()
    subtitle = f"{counted}{SEPARATOR}{computed}"
    lines = _lines(subtitle, int(width * 13))  # characters of this size that fit
    x, top = 0.08 / width, 1 - 0.08 / height
    figure.text(x, top, title, va="top", fontsize=12, weight="bold")
    text = "\n".join(lines)
    # parse_math: a `$` in a model's name is a dollar.
    style: dict[str, Any] = {"fontsize": 9, "color": MUTED, "parse_math": False}
    figure.text(x, top - 0.25 / height, text, va="top", **style)
    # The layout knows nothing of these texts: keep their height free of plots.
    used = (0.36 + 0.16 * len(lines)) / height
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - used))


def _lines(subtitle: str, width: int) -> list[str]:
    """Break between the parts of a subtitle; inside a part only where it doesn't fit a line."""
    lines: list[str] = []
    for part in subtitle.split(SEPARATOR):
        if lines and len(lines[-1]) + len(SEPARATOR) + len(part) <= width:
            lines[-1] += SEPARATOR + part
        else:
            lines += textwrap.wrap(part, width)
    return lines


def n_of(numbers: Iterable[int], noun: str) -> str:
    """Return how many there are of something: `12 features`, or where it differs `8 to 12
    features`.
    """
    counts = sorted({int(number) for number in numbers} or {0})
    spans = [f"{count:,}" for count in dict.fromkeys([counts[0], counts[-1]])]
    return f"{' to '.join(spans)} {noun}{'' if counts == [1] else 's'}"


def short_labels(labels: Sequence[str]) -> list[str]:
    """Return what tells results apart: of `key=value, key=value` the shortest part in which all of
    them differ, without its key where that is model or SAE.
    """
    parts = [label.split(", ") for label in labels]
    if len(labels) > 1 and len({len(part) for part in parts}) == 1:
        columns = [column for column in zip(*parts, strict=True) if len({*column}) == len(labels)]
        labels = min(columns, key=lambda column: max(map(len, column)), default=labels)
    values = [NAMED_BY.sub("", label) for label in labels]
    return values if len({*values}) == len(labels) else list(labels)


def legend_above(axes: Axes) -> None:
    """Put the legend in one line above the plot, where it can't hide data."""
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderpad=0.2,
        borderaxespad=0.2,
        ncols=max(len(handles), 1),
        handlelength=1.6,
        columnspacing=1.4,
    )


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `figure` as PNG and PDF, byte for byte the same each time; makes the folder."""
    make_folder(folder)
    paths = []
    # Where everything lies is found once for both files: it takes as long as drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        # Rendered first: a full disk then is an error of the write, not one inside Matplotlib.
        buffer = BytesIO()
        with _fonts_without_layout():
            figure.savefig(buffer, format=suffix, metadata=metadata)
        path = folder / f"{name}.{suffix}"
        with atomic_write(path) as file:
            file.write(buffer.getvalue())
        paths.append(path)
    return paths


@contextmanager
def _fonts_without_layout() -> Iterator[None]:
    """Leave out of PDFs' fonts the tables by which programs lay out text, which is done.

    Cutting them down to the characters in use takes Matplotlib twice as long as all the rest of a
    PDF, and it has no setting for it.
    """
    tables = subset.Options._drop_tables_default
    subset.Options._drop_tables_default = [*tables, "GDEF", "GPOS", "GSUB", "kern"]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = tables
