"""Figures of both scores: by layer (paper Figure 3), and against each other (Figure 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from steerlens.analysis.summary import HYBRID, hybrids
from steerlens.report.figures import style
from steerlens.report.figures.output_score import (
    S_OUT,
    counted,
    null_of,
    quartiles,
    shares_above,
    subtitle,
)
from steerlens.results.text import with_interval

if TYPE_CHECKING:
    import pandas as pd

S_IN = r"$S_\mathrm{in}$"
BOTH = (("input_score", "input score", S_IN), ("output_score", "output score", S_OUT))


def by_layer(frame: pd.DataFrame, null: pd.DataFrame | None = None) -> Figure | None:
    """Return the median, quartiles and shares above the thresholds of both scores in every layer.

    Beside the output scores those of the layer's random directions, where `null` has them.
    """
    both = _with_both(frame)
    layers = np.array(sorted({int(layer) for layer in both["layer"]}))
    if len(layers) < 2:  # of one layer `against` says more
        return None
    span = int(layers.max() - layers.min()) + 1
    figure = style.new_figure(float(np.clip(6 + 0.3 * span, 9, 15)), 5.6)
    panels = figure.subplots(2, 2, sharex=True, height_ratios=(3, 2))
    for (column, name, symbol), (top, bottom) in zip(BOTH, panels.T, strict=True):
        scores = {
            int(str(layer)): rows.to_numpy(dtype=float)
            for layer, rows in both.groupby("layer", sort=True)[column]
        }
        beside = null_of(null, scores) if column == "output_score" else None
        quartiles(top, scores, f"{name} {symbol}", beside)
        shares_above(bottom, scores, symbol, beside)
        for axes in (top, bottom):
            style.legend_above(axes)
    beside = null_of(null, dict.fromkeys(layers.tolist(), np.zeros(0)))
    how = "median and quartiles, and shares above thresholds, of features that have both scores"
    style.headline(figure, "Input and output score by layer", counted(both, beside), how)
    return figure


def against(frame: pd.DataFrame) -> Figure | None:
    """Return where features lie between both scores, and how many are high in both."""
    both = _with_both(frame)
    counts = hybrids(frame)
    if counts is None or len(both) < 2:
        return None
    figure = style.new_figure(6.8, 5.8)
    axes = figure.subplots()
    _cloud(figure, axes, both)
    for line in (axes.axvline, axes.axhline):
        line(HYBRID, color=style.RED, ls="--", lw=1.2)
    axes.set(xlabel=f"input score {S_IN}", ylabel=f"output score {S_OUT}")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    share, expected = counts["hybrid_share"], counts["hybrid_share_if_independent"]
    parts = [f"{share:.1%} have both ≥ {HYBRID:g} ({expected:.1%} if independent)"]
    if counts["ratio_interval"]:
        ratio = with_interval(counts["ratio"], *counts["ratio_interval"], is_named=True)
        parts.append(f"ratio {ratio}")
    title, how = "Input against output score", style.SEPARATOR.join(parts)
    style.headline(figure, title, subtitle(both), how)
    return figure


def _with_both(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[frame["input_score"].notna() & frame["output_score"].notna()]


def _cloud(figure: Figure, axes: Axes, both: pd.DataFrame) -> None:
    """Points while they can be told apart, else how many there are in each place."""
    x, y = (both[column].to_numpy(dtype=float) for column, _, _ in BOTH)
    if len(both) <= 500:
        axes.scatter(x, y, s=14, color=style.BLUE, alpha=0.5, lw=0)
        return
    bins = axes.hist2d(x, y, bins=50, range=((0, 1), (0, 1)), norm=LogNorm(vmin=0.4), cmap="Blues")
    figure.colorbar(bins[3], ax=axes, label="features", pad=0.02)
