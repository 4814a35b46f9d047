"""Figures of the scores as guides: what selecting by each buys, and whether they agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlens.analysis.equal_share import POOLED, WITHIN_LAYERS, EqualShare
from steerlens.report.figures import style
from steerlens.results.text import visible

if TYPE_CHECKING:
    import pandas as pd

PANELS = {
    POOLED: ("kept of all layers together", "times the {}\nof as many at random"),
    WITHIN_LAYERS: ("kept of each layer", "times the {}\nof as many of the same layer"),
}
"""How features are kept: title and axis."""

DARK = 0.6
"""Colours of larger numbers are too dark for dark letters."""


def payoffs(rows: Sequence[EqualShare], counted: str, success: str = "success") -> Figure:
    """Return how many times the success of as many at random the features have that each score puts
    first, the best score on top.

    Args:
        rows: of one share.
        counted: what was steered, and how many.
        success: what it is called.
    """
    best_first = sorted(
        (row for row in rows if row.pooling == POOLED), key=lambda row: row.payoff, reverse=True
    )
    scores = [row.score for row in best_first]
    figure = style.new_figure(9.4, 1.9 + 0.27 * len(scores))
    panels = figure.subplots(1, len(PANELS), sharex=True, sharey=True)
    for axes, (pooling, (title, label)) in zip(panels, PANELS.items(), strict=True):
        axes.axvline(1, color=style.INK, ls="--", lw=1.2)
        row_of = {row.score: row for row in rows if row.pooling == pooling}
        for y, score in enumerate(scores):
            if score not in row_of:
                _beside(axes, y, "too few have it", style.MUTED)
                continue
            row = row_of[score]
            is_better = row.payoff > 1
            color = (style.BLUE if is_better else style.RED) if row.is_sure else style.MUTED
            face = color if row.is_sure else "white"
            numbers = f"{row.payoff:.2f}"
            if row.payoff_low is not None and row.payoff_high is not None:
                axes.plot([row.payoff_low, row.payoff_high], [y, y], color=color, lw=1.6)
                numbers += f" ({row.payoff_low:.2f} to {row.payoff_high:.2f})"
            axes.plot(row.payoff, y, "o", color=color, mfc=face, ms=6)
            _beside(axes, y, numbers, color)
        axes.set_title(title, loc="left")
        axes.set_xlabel(label.format(success))
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
    names = [visible(score).replace("_", " ") for score in scores]
    panels[0].set_yticks(range(len(names)), names, parse_math=False)
    panels[0].invert_yaxis()
    style.headline(
        figure,
        "By which score to select features",
        counted,
        f"{rows[0].share:.0%} kept; dashed: chance. Lines: 95 % intervals, simultaneous over the "
        f"{len(scores)} scores; blue: surely better than chance, red: surely worse, hollow: can't "
        "be told",
    )
    return figure


def _beside(axes: Axes, y: float, text: str, color: str) -> None:
    """Write `text` in the row `y`, on the right of the plot."""
    axes.annotate(
        text, (1.02, y), xycoords=("axes fraction", "data"), fontsize=8, va="center", color=color,
        annotation_clip=False,
    )  # fmt: skip


def agreement(pairs: pd.DataFrame, scores: Sequence[str]) -> Figure:
    """Return below the diagonal the rank correlation of every two scores, above it what they share
    of their first features, coloured from what chance shares.
    """
    n = len(scores)
    index_of = {name: index for index, name in enumerate(scores)}
    grid_NN = np.full((n, n), np.nan)
    for row in pairs.to_dict("records"):
        first, last = sorted((index_of[row["score"]], index_of[row["other_score"]]))
        grid_NN[last, first] = row["spearman"]
        grid_NN[first, last] = row["top_shared"]
    chance = float(np.median(pairs["top_shared_by_chance"].to_numpy(float)))
    figure = style.new_figure(3 + 0.52 * n, 2.6 + 0.36 * n)
    axes = figure.subplots()
    is_below_NN = np.tri(n, k=-1, dtype=bool)
    for is_shown_NN, least, colours in (
        (is_below_NN, -1, "RdBu_r"),
        (~is_below_NN, chance, "Greens"),
    ):
        shown_NN = np.where(is_shown_NN, grid_NN, np.nan)
        axes.imshow(shown_NN, vmin=least, vmax=1, cmap=colours, aspect="auto")
    for i, j in itertools.product(range(n), repeat=2):
        value = float(grid_NN[i, j])
        if np.isnan(value):
            continue
        darkness, text = (abs(value), f"{value:z.2f}")
        if i < j:
            darkness, text = ((value - chance) / (1 - chance), f"{value:.0%}")
        color = "white" if darkness > DARK else style.INK
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
    names = [visible(name).replace("_", " ") for name in scores]
    axes.set_xticks(range(n), names, rotation=40, ha="right", parse_math=False)
    axes.set_yticks(range(n), names, parse_math=False)
    axes.grid(visible=False)
    top = int(pairs["top"].to_numpy().max())
    style.headline(
        figure,
        "Do the scores agree?",
        f"{style.n_of(pairs['features'], 'feature')} that have both",
        f"below: Spearman's rank correlation; above: shared of the first {top}, of which chance "
        f"shares {chance:.0%}",
    )
    return figure
