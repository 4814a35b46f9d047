"""Figures of the output score S_out: by layer, and how it is distributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from steerlens.analysis.summary import THRESHOLDS
from steerlens.report.figures import style
from steerlens.results.table import names
from steerlens.results.text import visible

if TYPE_CHECKING:
    import pandas as pd

FLOOR = 1e-12
"""Scores below it, zero too, are drawn here: a logarithmic axis has no zero."""

LOWEST = 0.005
"""The axis of a distribution begins where this share of the scores lies below."""

S_OUT = r"$S_\mathrm{out}$"
MARKS = tuple(zip(THRESHOLDS, (style.GREEN, style.RED), ("o", "s"), strict=True))

Scores = dict[int, np.ndarray]
"""The output scores of every layer, without nulls; layers in order."""


def by_layer(frame: pd.DataFrame, null: pd.DataFrame | None = None) -> Figure | None:
    """Return the median and quartiles of S_out in every layer, and the share above each threshold.

    Beside those of the layer's random directions, where `null` has their scores.
    """
    scores = _scores(frame)
    if len(scores) < 2:  # of one layer the distribution says more
        return None
    beside = null_of(null, scores)
    layers = np.array(list(scores))
    span = int(layers.max() - layers.min()) + 1
    figure = style.new_figure(float(np.clip(3 + 0.22 * span, 6.4, 12)), 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    quartiles(top, scores, f"output score {S_OUT}", beside)
    shares_above(bottom, scores, S_OUT, beside)
    for axes in (top, bottom):
        style.legend_above(axes)
    how = "median and quartiles, and shares above thresholds, of the features of each layer"
    style.headline(figure, "Output score by layer", counted(_scored(frame), beside), how)
    return figure


def counted(scored: pd.DataFrame, null: Scores) -> str:
    """Return what was measured, and how many random directions stand beside it."""
    n = sum(map(len, null.values()))
    return style.SEPARATOR.join([subtitle(scored), *([f"{n:,} random directions"] if n else [])])


def distribution(frame: pd.DataFrame, null: pd.DataFrame | None = None) -> Figure | None:
    """Return how S_out is distributed over all features, and in every layer; in grey that of random
    directions, where `null` has their scores.
    """
    scores = _scores(frame)
    if not scores:
        return None
    pooled = np.concatenate(list(scores.values()))
    of_null = null_of(null, scores)
    beside = np.concatenate([*of_null.values(), np.zeros(0)])
    figure = style.new_figure(10, 4.4)
    left_axes, right = figure.subplots(1, 2)
    # Down to the decade in which scores begin, and never so narrow that no threshold is seen.
    lowest = max(float(np.quantile(pooled, LOWEST)), FLOOR)
    start = min(10.0 ** np.floor(np.log10(lowest)), THRESHOLDS[0] / 10)
    _histogram(left_axes, pooled, beside, start)
    _shares(right, scores, beside, start)
    if len(scores) > 1:
        bounds = Normalize(min(scores), max(scores))
        bar = figure.colorbar(
            ScalarMappable(bounds, style.LAYERS), ax=right, label="layer", pad=0.02
        )
        bar.locator = MaxNLocator(integer=True, nbins=8)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    for axes in (left_axes, right):
        _score_axis(axes, start, float((pooled < start).mean()))
    style.legend_above(left_axes)
    if len(beside):
        style.legend_above(right)
    how = "each score counts once; right: share of the features with at least the score"
    style.headline(
        figure, "Distribution of the output score", counted(_scored(frame), of_null), how
    )
    return figure


def _scores(frame: pd.DataFrame) -> Scores:
    return {
        int(str(layer)): rows.to_numpy(dtype=float)
        for layer, rows in _scored(frame).groupby("layer", sort=True)["output_score"]
    }


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[frame["output_score"].notna()]


def null_of(null: pd.DataFrame | None, scores: Scores) -> Scores:
    """Return the scores of random directions in the layers of `scores`; {} if there are none."""
    by_layer = {} if null is None else _scores(null)
    return {layer: by_layer[layer] for layer in scores if layer in by_layer}


def quartiles(axes: Axes, scores: Scores, label: str, null: Scores | None = None) -> None:
    """Draw a line through the medians and a band between the quartiles, on whole layers only.

    In grey those of random directions, `null`.
    """
    if mostly_zero(scores):
        _means(axes, scores, label, null or {})
        return
    quartiles_LQ, beside = _quartiles(scores), _quartiles(null or {})
    positive = np.maximum(quartiles_LQ[quartiles_LQ[:, 1] > 0], FLOOR)
    # Medians from 1e-7 in early layers to 0.5 in late ones would be a flat line and a wall.
    log = positive.size > 0 and positive[:, 1].max() > 100 * positive[:, 1].min()
    floor = FLOOR if log else 0.0
    layers, labels = np.array(list(scores)), ("quartiles", "median")
    _band(axes, layers, np.maximum(quartiles_LQ, floor), style.BLUE, "-", labels)
    if null:
        layers, labels = np.array(list(null)), ("", "random directions")
        _band(axes, layers, np.maximum(beside, floor), style.MUTED, "--", labels)
    axes.set_ylabel(label)
    if log:
        axes.set_yscale("log")
        lowest = min([positive.min(), *np.maximum(beside[:, 1], FLOOR)])
        axes.set_ylim(10 ** np.floor(np.log10(lowest)), 1.3)
        for threshold, color, _ in MARKS:
            axes.axhline(threshold, color=color, ls="--", lw=1.2)
    else:
        top = 1.08 * float(max([*quartiles_LQ[:, 2], *beside[:, 2]])) or 1.0
        axes.set_ylim(-0.03 * top, top)


def mostly_zero(scores: Scores) -> bool:
    """Return whether a line through the medians would lie at 0 in most layers."""
    return float(np.mean([np.median(values) == 0 for values in scores.values()])) > 0.5


def _means(axes: Axes, scores: Scores, label: str, null: Scores) -> None:
    """Draw the mean and the 90th percentile of every layer, where the medians are 0."""
    layers = list(scores)
    top = [float(np.quantile(values, 0.9)) for values in scores.values()]
    mean = [float(values.mean()) for values in scores.values()]
    axes.plot(layers, top, color=style.BLUE, ls=":", marker="^", label="90th percentile")
    axes.plot(layers, mean, color=style.BLUE, marker="o", label="mean (the median is 0)")
    if null:
        beside = [float(values.mean()) for values in null.values()]
        look: dict[str, Any] = {"ls": "--", "marker": "o", "label": "random directions"}
        axes.plot(list(null), beside, color=style.MUTED, **look)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0, top=None if max(top + mean) > 0 else 1)


def _quartiles(scores: Scores) -> np.ndarray:
    """Return (layers, 3)."""
    quartiles_LQ = [np.quantile(values, (0.25, 0.5, 0.75)) for values in scores.values()]
    return np.reshape(quartiles_LQ, (-1, 3))


def _band(
    axes: Axes,
    layers: np.ndarray,
    quartiles_LQ: np.ndarray,
    color: str,
    line: str,
    labels: tuple[str, str],
) -> None:
    (low, middle, high), (label, median) = quartiles_LQ.T, labels
    if len(layers) > 2:
        axes.fill_between(layers, low, high, color=color, alpha=0.2, lw=0, label=label)
    else:  # a band through one or two layers would be no band
        axes.vlines(layers, low, high, color=color, alpha=0.35, lw=6, label=label)
    axes.plot(layers, middle, color=color, ls=line, marker="o", label=median)


def shares_above(axes: Axes, scores: Scores, symbol: str, null: Scores | None = None) -> None:
    """For every layer, the share of features at or above each threshold.

    Dashed and hollow that of random directions, `null`.
    """
    layers = np.array(list(scores))
    for threshold, color, marker in MARKS:
        share = [float((values >= threshold).mean()) for values in scores.values()]
        axes.plot(layers, share, color=color, marker=marker, label=f"{symbol} ≥ {threshold:g}")
        if null:
            share = [float((values >= threshold).mean()) for values in null.values()]
            (line,) = axes.plot(list(null), share, color=color, ls="--", marker=marker)
            line.set(markerfacecolor="white")
    if null:  # told once, as its colours are those of the features
        axes.plot([], [], color=style.INK, ls="--", label="random directions")
    axes.set(xlabel="layer", ylabel="share of features", ylim=(-0.04, 1.04))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _layer_ticks(axes, layers)


def _layer_ticks(axes: Axes, layers: np.ndarray) -> None:
    """Set a tick at every layer that was scored, and as many labels as fit."""
    step = int(np.ceil(len(layers) / 32))
    axes.xaxis.set_major_locator(FixedLocator(layers[::step].tolist()))
    axes.xaxis.set_minor_locator(FixedLocator(layers.tolist()))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(layers.min() - 0.6, layers.max() + 0.6)


def _histogram(axes: Axes, pooled: np.ndarray, null: np.ndarray, start: float) -> None:
    # As shares: of features there may be ten times as many as of random directions.
    bins = np.geomspace(start, 1, 61 if len(pooled) >= 1000 else 25).tolist()
    drawn = np.clip(pooled, start, 1)
    weights = np.full(len(pooled), 1 / len(pooled))
    axes.hist(drawn, bins=bins, weights=weights, color=style.BLUE, alpha=0.75)
    if len(null):
        weights = np.full(len(null), 1 / len(null))
        look: dict[str, Any] = {"histtype": "step", "color": style.INK, "lw": 1.2}
        axes.hist(np.clip(null, start, 1), bins=bins, weights=weights, **look)
    for threshold, color, _ in MARKS:
        label = f"{(pooled >= threshold).mean():.1%} have {S_OUT} ≥ {threshold:g}"
        axes.axvline(threshold, color=color, ls="--", lw=1.4, label=label)
    axes.set_ylabel("share of features in a bin")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _shares(axes: Axes, scores: Scores, null: np.ndarray, start: float) -> None:
    """For every layer, the share of features with at least the score on the x axis."""
    grid = np.geomspace(start, 1, 300)
    colors = matplotlib.colormaps[style.LAYERS](np.linspace(0, 1, max(len(scores), 2)))
    if len(scores) > 1:  # the colour says the layer's place on the bar, not its rank
        places = np.array(list(scores), dtype=float)
        colors = matplotlib.colormaps[style.LAYERS](Normalize()(places))
    for values, color in zip(scores.values(), colors, strict=False):
        axes.plot(grid, _share_above(values, grid), color=color, lw=1.2)
    if len(null):
        look = {"color": style.INK, "ls": "--", "lw": 1.4, "label": "random directions"}
        axes.plot(grid, _share_above(null, grid), **look)
    for threshold, color, _ in MARKS:
        axes.axvline(threshold, color=color, ls="--", lw=1.4)
    axes.set_ylabel("share of features with at least this score")
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _share_above(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the share of `values` of at least each of `grid`."""
    return 1 - np.searchsorted(np.sort(np.maximum(values, grid[0])), grid) / len(values)


def _score_axis(axes: Axes, start: float, below: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(start, 1)
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_minor_locator(LogLocator(numticks=99))
    axes.xaxis.set_minor_formatter(NullFormatter())
    note = f" ({100 * below:.2g} % are lower: drawn at the left)" if below else ""
    axes.set_xlabel(f"output score {S_OUT}{note}")


def subtitle(frame: pd.DataFrame) -> str:
    """Return model, SAE, layers and number of the features in `frame`."""
    layers = frame["layer"].drop_duplicates().tolist()
    parts = [
        _name_or_count(names(frame, "model"), "models"),
        _name_or_count(names(frame, "sae"), "SAEs"),
    ]
    parts.append(f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers")
    parts.append(f"{len(frame):,} feature{'s' * (len(frame) != 1)}")
    return style.SEPARATOR.join(part for part in parts if part)


def _name_or_count(names: list[str], plural: str) -> str:
    return visible(names[0]) if len(names) == 1 else f"{len(names)} {plural}" if names else ""
