"""Figures of features by their role: steered texts (paper Figures 2, 7) and PMI (Figure 8)."""

from __future__ import annotations

import unicodedata
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle

from steerlens.analysis.pmi import by_role
from steerlens.analysis.roles import ROLES, Span, SteeredExample, examples, factor_cell, with_roles
from steerlens.report.figures import style
from steerlens.report.figures.output_score import subtitle
from steerlens.results import FEATURES
from steerlens.results.pmi import Pmi
from steerlens.results.text import counted, number, visible, visible_tokens

if TYPE_CHECKING:
    import pandas as pd

MONO = "DejaVu Sans Mono"
"""A font that comes with Matplotlib, so that figures are the same everywhere."""
FONT_SIZE = 8.5
CHAR = 1233 / 2048 * FONT_SIZE / 72
"""Width in inches of every character of the font."""
LINE = 0.17
COLUMNS = 96
LABEL = 12
"""Characters of a line before the text, for the factor."""
LEFT, HEADER = 0.1, 0.75

MARK = "#f5d491"
"""Behind success tokens: light enough to read black on it, in grey, too."""
COLORS: dict[str, str] = dict(
    zip(ROLES, (style.BLUE, style.RED, style.GREEN, style.MUTED), strict=True)
)

Cell = tuple[str, int | None]
"""How a character is shown, and the number of the success token that it belongs to."""
Line = tuple[str, Sequence[Cell], dict[str, Any]]
"""A label, the text after it, and how both look."""

HEADING = {"weight": "bold", "color": style.INK}
QUIET = {"color": style.MUTED}


def draw_input_and_output(
    steering: pd.DataFrame, generations: pd.DataFrame, folder: Path, prompts: int = 2
) -> list[Path]:
    """Return figure 2: the clearest input and the clearest output feature, weakly and strongly
    steered.
    """
    example_of = {
        f"{role} feature": example
        for role in ("input", "output")
        for example in examples(steering, generations, role, 1, prompts)
    }
    title = " and ".join(f"an {name}" for name in example_of).capitalize()
    title = f"{title}, weakly and strongly steered"
    return _draw_texts(example_of, steering, folder, "input_and_output_feature", title)


def draw_hybrids(
    steering: pd.DataFrame, generations: pd.DataFrame, folder: Path, n: int = 3, prompts: int = 2
) -> list[Path]:
    """Return figure 7: the clearest hybrid features, weakly and strongly steered."""
    clearest = examples(steering, generations, "hybrid", n, prompts)
    example_of = {f"hybrid feature {rank}": example for rank, example in enumerate(clearest, 1)}
    title = "Hybrid features, weakly and strongly steered"
    return _draw_texts(example_of, steering, folder, "hybrid_features", title)


def draw_pmi(pmi: Pmi, folder: Path) -> list[Path]:
    """Return figure 8: PMI of success tokens with the first logit-lens token, by role."""
    with style.look():
        figure = pmi_by_role(pmi)
        return style.save(figure, folder, "pmi_by_role") if figure else []


def _draw_texts(
    example_of: Mapping[str, SteeredExample],
    steering: pd.DataFrame,
    folder: Path,
    name: str,
    title: str,
) -> list[Path]:
    # Hinting rounds a character's width to pixels: marks would drift away from their tokens.
    with style.look(), matplotlib.rc_context({"text.hinting": "no_hinting"}):
        figure = steered_texts(example_of, title, subtitle(with_roles(steering)))
        return style.save(figure, folder, name) if figure else []


def steered_texts(
    example_of: Mapping[str, SteeredExample], title: str, under: str
) -> Figure | None:
    """Return every feature under its name with its scores, tokens and texts, success tokens
    marked.
    """
    lines = [line for name, example in example_of.items() for line in _lines(name, example)]
    if not lines:
        return None
    height = HEADER + LINE * (len(lines) + 1)
    figure = style.new_figure(2 * LEFT + (LABEL + COLUMNS) * CHAR, height)
    style.headline(figure, title, under, "the clearest are shown; success tokens are marked")
    figure.set_layout_engine("none")  # there are no axes to lay out
    for index, (label, cells, look) in enumerate(lines):
        y = height - HEADER - LINE * (index + 0.5)
        _write(figure, 0, y, label, **QUIET | look)
        column = LABEL
        for success, run in groupby(cells, key=lambda cell: cell[1]):
            text = "".join(part for part, _ in run)
            if success is not None:
                _mark(figure, column, y, len(text))
            _write(figure, column, y, text, **look)
            column += len(text)
    return figure


def _lines(name: str, example: SteeredExample) -> Iterator[Line]:
    scores = (
        f"layer {example.layer}, feature {example.feature}"
        f"   S_in {number(example.input_score, '.2f')}"
        f"   S_out {number(example.output_score, '.3g')}"
        f"   best factor {factor_cell(example)}"
    )
    yield f"{name}: {scores}", [], HEADING
    tokens = [(_in_font(char), None) for char in visible_tokens(example.tokens, 10)]
    yield from _wrapped("tokens", tokens, QUIET)
    for passage in example.passages:
        yield from _wrapped("prompt", shown_cells(passage.prompt), QUIET)
        for text in passage.continuations:
            label = f"s = {text.factor:g}" if text.factor else "unsteered"
            yield from _wrapped(label, shown_cells(text.text, text.successes), {})
    yield "", [], {}


def _wrapped(label: str, cells: Sequence[Cell], look: dict[str, Any]) -> list[Line]:
    lines = list(wrap(cells, COLUMNS)) or [[]]
    labels = [label] + [""] * (len(lines) - 1)
    return [(label, line, look) for label, line in zip(labels, lines, strict=True)]


def shown_cells(text: str, successes: Sequence[Span] = ()) -> list[Cell]:
    """Return every character of `text` in characters that the font has, all of the same width."""
    of = {at: i for i, (start, end) in enumerate(successes) for at in range(start, end)}
    return [("".join(map(_in_font, visible(c))), of.get(at)) for at, c in enumerate(text)]


def wrap(cells: Sequence[Cell], width: int) -> Iterator[Sequence[Cell]]:
    """Yield lines of at most `width` characters, broken after a space where there is one."""
    while cells:
        fits = max(bisect(list(accumulate(len(cell) for cell, _ in cells)), width), 1)
        spaces = [at for at in range(fits) if cells[at][0] == " "]
        cut = spaces[-1] + 1 if spaces and fits < len(cells) else fits
        yield cells[:cut]
        cells = cells[cut:]


def _in_font(char: str) -> str:
    """Return a visible character, as an escape if the font lacks it or it runs from right to
    left.
    """
    glyph = get_font(findfont(MONO)).get_char_index(ord(char))
    if glyph and unicodedata.bidirectional(char) not in ("R", "AL"):
        return char
    return char.encode("unicode_escape").decode("ascii")


def _write(figure: Figure, column: int, y: float, text: str, **look: Any) -> None:
    # Inches, not shares of the figure: a mark must lie exactly behind its characters.
    options = {"transform": figure.dpi_scale_trans, "va": "center_baseline", "parse_math": False}
    font = {"family": MONO, "fontsize": FONT_SIZE}
    figure.text(LEFT + column * CHAR, y, text, **options | font | look)


def _mark(figure: Figure, column: int, y: float, length: int) -> None:
    # A little narrower than its characters, so that neighbouring tokens stay apart.
    corner = (LEFT + column * CHAR + 0.008, y - 0.42 * LINE)
    size = (length * CHAR - 0.016, 0.84 * LINE)
    figure.add_artist(
        Rectangle(corner, *size, transform=figure.dpi_scale_trans, facecolor=MARK, lw=0, zorder=0.5)
    )


def pmi_by_role(pmi: Pmi) -> Figure | None:
    """Return every pair's PMI by the role of its feature, with quartiles, and the mean's
    interval.
    """
    statistics = by_role(pmi.pairs)
    if not statistics:
        return None
    figure = style.new_figure(2.6 + 1.3 * len(statistics), 4.6)
    axes = figure.subplots()
    for x, role in enumerate(statistics):
        values = pmi.pairs.loc[pmi.pairs["role"] == role, "pmi"].to_numpy(dtype=float)
        _strip(axes, x, values, COLORS[role])
        _mean(axes, x, statistics[role])
    axes.axhline(0, color=style.MUTED, lw=1, zorder=0.9)
    axes.set(xlim=(-0.6, len(statistics) - 0.4), ylabel="PMI in bits")
    axes.set_xticks(
        range(len(statistics)),
        [
            f"{role}\n{counted(of_role['pairs'], 'pair')}\n"
            + counted(of_role["features"], "feature")
            for role, of_role in statistics.items()
        ],
    )
    axes.grid(visible=False, axis="x")
    style.legend_above(axes)
    under = [
        subtitle(pmi.pairs.drop_duplicates(list(FEATURES.keys))),
        counted(pmi.windows, "window"),
        f"{counted(sum(pmi.dropped.values()), 'pair')} left out",
    ]
    title = "PMI of success tokens with the first logit-lens token"
    how = (
        "a point a pair; quartiles, whiskers to 1.5 times their range; the mean with its 95 % "
        "interval"
    )
    style.headline(figure, title, style.SEPARATOR.join(under), how)
    return figure


def _strip(axes: Axes, x: int, values: np.ndarray, color: str) -> None:
    """Draw a point for every value, beside each other, and a box between the quartiles."""
    beside = np.random.default_rng(0).uniform(-0.28, 0.28, len(values))
    axes.scatter(x + beside, values, s=12, color=color, alpha=0.6, lw=0)
    line = {"color": style.INK, "lw": 1.2}
    axes.boxplot(
        values,
        positions=[x],
        widths=0.62,
        showfliers=False,
        manage_ticks=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops=line | {"lw": 2},
    )


def _mean(axes: Axes, x: int, statistics: Mapping[str, Any]) -> None:
    label = "mean, 95 % interval over features" if x == 0 else None
    mean = statistics["mean"]
    low, high = statistics["mean_interval"] or (mean, mean)
    axes.errorbar(
        x + 0.4,
        mean,
        yerr=[[mean - low], [high - mean]],
        fmt="D",
        color=style.ORANGE,
        capsize=3,
        label=label,
    )
