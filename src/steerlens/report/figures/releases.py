"""Results of SAEs side by side: over all layers, and layer by layer."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from steerlens.analysis.summary import STEERABLE
from steerlens.report.figures import style
from steerlens.results.text import visible

TITLE = "Results side by side"

PANELS = {
    "success": f"success@20, S_out ≥ {STEERABLE:g}",
    "covered": "share of words covered",
    "steerable_0.1": f"share of features with S_out ≥ {STEERABLE:g}",
    "payoff": "success filtered / unfiltered",
    "payoff_within_layers": "the same within layers",
}

LAYER_PANELS = {
    "output_score_median": "median S_out, quartiles",
    "input_score_median": "median S_in, quartiles",
    "steerable_0.1": PANELS["steerable_0.1"],
    "success": PANELS["success"],
}


def draw_releases(ranked: pd.DataFrame) -> Figure:
    """Return every measure with its interval, in the order of the table."""
    panels = [name for name in PANELS if name in ranked]
    figure = style.new_figure(2.2 + 2.4 * len(panels), 1.8 + 0.35 * len(ranked))
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    y = np.arange(len(ranked))
    for axes, name in zip(row, panels, strict=True):
        value, low, high = (
            ranked[key].to_numpy(dtype=float) for key in (name, f"{name}_low", f"{name}_high")
        )
        axes.hlines(y, low, high, color=style.BLUE, lw=1.6)
        axes.plot(value, y, "o", color=style.BLUE)
        axes.set_xlabel(textwrap.fill(PANELS[name], 24))
    labels = style.short_labels(ranked["release"].tolist())
    row[0].set_yticks(y, list(map(visible, labels)), parse_math=False)
    row[0].set_ylim(len(ranked) - 0.5, -0.5)
    n = f"{style.n_of([len(ranked)], 'result')} of {style.n_of(ranked['features'], 'feature')}"
    style.headline(figure, TITLE, n, "means with 95 % intervals, in the order of the first")
    return figure


def draw_layers(by_layer: Any, by_depth: bool) -> Figure:
    """Return both scores, and success, with quartiles or intervals, by layer or by relative
    depth.
    """
    filled = [name for name in LAYER_PANELS if by_layer[name].notna().any()]
    # A median of 0 in every layer is said, not drawn.
    at_zero = [name for name in filled if name.endswith("_median") and not by_layer[name].any()]
    panels = [name for name in filled if name not in at_zero] or filled
    different = np.unique(by_layer["depth" if by_depth else "layer"].to_numpy(dtype=float))
    # Beside each other at one place, so that bars of different releases don't overlap.
    step = 0.07 * float(np.diff(different).min()) if len(different) > 1 else 0.07
    figure = style.new_figure(1.5 + 3.4 * len(panels), 4.2)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    releases = list(dict.fromkeys(by_layer["release"]))
    labels = dict(zip(releases, style.short_labels(releases), strict=True))
    for axes, name in zip(row, panels, strict=True):
        for index, (label, rows) in enumerate(by_layer.groupby("release", sort=False)):
            x = rows["depth" if by_depth else "layer"].to_numpy(dtype=float) + index * step
            y, reach = rows[name].to_numpy(dtype=float), _reach(rows, name)
            color = style.PALETTE[index % len(style.PALETTE)]
            marker = style.MARKERS[(index + index // len(style.PALETTE)) % len(style.MARKERS)]
            axes.errorbar(x, y, reach, fmt="none", color=color, alpha=0.5, elinewidth=1)
            axes.plot(x, y, f"{marker}-", color=color, label=visible(labels[str(label)]))
        axes.set_ylim(bottom=0, top=None if by_layer[name].any() else 1)
        axes.set_xlabel("relative depth" if by_depth else "layer")
        if not by_depth:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(LAYER_PANELS[name])
    handles, labels = row[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3)
    for text in legend.get_texts():
        text.set_parse_math(False)
    where = "relative depth" if by_depth else "layer"
    parts = [f"by {where}; bars are quartiles or 95 % intervals"]
    parts += [f"{LAYER_PANELS[name].partition(',')[0]} is 0 everywhere" for name in at_zero]
    n = style.n_of(by_layer["features"], "feature")
    style.headline(figure, TITLE, f"{n} in each {where}", style.SEPARATOR.join(parts))
    return figure


def _reach(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Return, as (2, n), how far the quartiles, or the interval, go below and above the value."""
    base = name.removesuffix("_median")
    ends = (f"{base}_q25", f"{base}_q75") if base != name else (f"{name}_low", f"{name}_high")
    value, low, high = (rows[key].to_numpy(dtype=float) for key in (name, *ends))
    return np.nan_to_num(np.maximum([value - low, high - value], 0))
