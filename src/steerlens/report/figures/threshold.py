"""Figures of what selecting features buys: over thresholds (paper Figures 4, 5), by criterion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from steerlens.analysis.payoff import (
    DRAWS,
    Criterion,
    Point,
    criteria,
    first_selective,
    threshold_curve,
)
from steerlens.analysis.resampling import Draws, Estimate
from steerlens.report.figures import style
from steerlens.report.figures.output_score import S_OUT, subtitle
from steerlens.results import features_alone
from steerlens.results.text import visible

if TYPE_CHECKING:
    import pandas as pd

SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Shares of the features at which criteria are drawn."""

SORTED_AT = 0.2
"""Share at which the lines are sorted, the best first."""

MOST = 6
"""More lines can't be told apart: the others are grey."""

SUCCESS = "mean success@20 at the best factor"

AT_RANDOM = (
    ("random", "as many at random", style.MUTED),
    ("random_within_layers", "as many of each layer", style.GREEN),
)

RATIOS = (
    ("over_unfiltered", "beside all", style.BLUE),
    ("over_unfiltered_within_layers", "beside as many of each layer", style.GREEN),
)


def by_threshold(steering: pd.DataFrame) -> Figure | None:
    """Return the success of the features with S_out of at least each threshold, how many times
    that of others it is, and how many they are; the others pooled, and as many of each layer.
    """
    points = [point for point in threshold_curve(steering) if point.success is not None]
    if not points:
        return None
    scored = _features(steering).dropna(subset=["output_score"])
    # Of one layer both are the same.
    kinds = 1 if len({*scored["layer"].tolist()}) == 1 else 2
    figure = style.new_figure(7.4, 7.2)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1.4))
    _curve(top, points, AT_RANDOM[:kinds])
    _ratios(middle, points, RATIOS[:kinds])
    _numbers(bottom, points)
    bottom.set_xlim(*shown_thresholds(points))
    how = [
        "means at the best factor; bands: 95 % intervals over features",
        f"at random: means of {DRAWS} draws, bands their range",
    ]
    title = "Success of the features above a threshold"
    style.headline(figure, title, _subtitle(scored), style.SEPARATOR.join(how))
    return figure


def shown_thresholds(*curves: Sequence[Point]) -> tuple[float, float]:
    """Return the ends of the axis: from where a threshold leaves out features of any curve."""
    starts = [
        points[first].threshold
        for points in curves
        if (first := first_selective([point.selected for point in points])) < len(points)
    ]
    lowest = min(starts, default=min(points[0].threshold for points in curves))
    return lowest / 1.3, 1.15


def by_criterion(steering: pd.DataFrame) -> Figure | None:
    """Return the success of the same number of features, selected by one score or by another."""
    by_score = criteria(steering, SHARES)
    if not by_score:
        return None
    figure = style.new_figure(8.6, 4.8)
    axes = figure.subplots()
    _unselected(axes, by_score)
    lines = sorted(_lines(by_score), key=lambda line: line.compared, reverse=True)
    n_named = len(lines) if len(lines) <= MOST else MOST
    for index, line in enumerate(lines[:n_named]):
        axes.plot(
            line.shares,
            line.success,
            color=style.PALETTE[index % len(style.PALETTE)],
            marker=style.MARKERS[index % len(style.MARKERS)],
            ls="--" if line.is_reversed else "-",
            label=line.label,
        )
    unnamed = lines[n_named:]
    for line in unnamed:
        # One entry of the legend for all of them.
        label = f"{len(unnamed)} others" if line is unnamed[0] else None
        axes.plot(line.shares, line.success, color=style.GREY, lw=1, zorder=1.5, label=label)
    axes.set(xscale="log", xlabel="share of features selected", ylabel=SUCCESS)
    axes.set_ylim(bottom=0)
    axes.set_xticks(SHARES, minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), title="selected by")
    for text in legend.get_texts():
        text.set_parse_math(False)  # other people's columns
    how = "means at the best factor"
    style.headline(figure, "Scores as guides to steering", _subtitle(_features(steering)), how)
    return figure


def _curve(axes: Axes, points: list[Point], at_random: Sequence[tuple[str, str, str]]) -> None:
    thresholds = [point.threshold for point in points]
    success = _columns([point.success for point in points])
    # A few features have no interval: the band ends before them.
    axes.fill_between(thresholds, success[1], success[2], color=style.BLUE, alpha=0.2, lw=0)
    axes.plot(thresholds, success[0], color=style.BLUE, marker="o", label=f"{S_OUT} ≥ t")
    for name, label, color in at_random:
        random = _columns([getattr(point, name) for point in points])
        axes.fill_between(thresholds, random[1], random[2], color=color, alpha=0.2, lw=0)
        axes.plot(thresholds, random[0], color=color, label=label)
    shuffled = _columns([point.shuffled for point in points])
    axes.plot(thresholds, shuffled[0], color=style.ORANGE, ls=":", label="shuffled scores")
    axes.set_ylabel(SUCCESS)
    axes.set_ylim(bottom=0)
    style.legend_above(axes)


def _ratios(axes: Axes, points: list[Point], ratios: Sequence[tuple[str, str, str]]) -> None:
    """How many times the success of others the features above each threshold have."""
    thresholds = [point.threshold for point in points]
    for name, label, color in ratios:
        columns = _columns([getattr(point, name) for point in points])
        axes.fill_between(thresholds, columns[1], columns[2], color=color, alpha=0.2, lw=0)
        axes.plot(thresholds, columns[0], color=color, marker="o", label=label)
    axes.axhline(1, color=style.MUTED, ls="--", lw=1.2)
    axes.set_ylabel("times their success")
    style.legend_above(axes)


def _numbers(axes: Axes, points: list[Point]) -> None:
    thresholds = [point.threshold for point in points]
    left_out = [point.without_factor for point in points]
    selected = [point.selected for point in points]
    undecided = [point.undecided for point in points]
    axes.plot(thresholds, selected, color=style.BLUE, marker="o", label="selected")
    if any(left_out):
        label = "left out: no best factor"
        axes.plot(thresholds, left_out, color=style.RED, marker="s", label=label)
    if any(undecided):
        label = "undecided: no success at any factor"
        axes.plot(thresholds, undecided, color=style.ORANGE, marker="^", label=label)
    if any(left_out) or any(undecided):
        style.legend_above(axes)
    axes.set(xscale="log", xlabel=f"threshold t of the output score {S_OUT}", ylabel="features")
    # Logarithmic, as few features are over the highest thresholds, with a place for none.
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)


def _unselected(axes: Axes, by_score: list[Criterion]) -> None:
    """Draw the mean of all features, and the range of random subsets of each size."""
    at_share = [
        next((criterion.highest[index] for criterion in by_score if criterion.highest[index]), None)
        for index in range(len(SHARES))
    ]
    at_shares = [(share, best) for share, best in zip(SHARES, at_share, strict=True) if best]
    random = _columns([best.random for _, best in at_shares])
    shares = [share for share, _ in at_shares]
    label = f"{DRAWS} random subsets"
    axes.fill_between(shares, random[1], random[2], color=style.MUTED, alpha=0.2, lw=0, label=label)
    axes.axhline(at_shares[0][1].unfiltered, color=style.MUTED, lw=1.2, label="no selection")


class _Line(NamedTuple):
    label: str
    shares: Sequence[float]
    success: Sequence[float]
    compared: float
    """Success at the share by which lines are sorted; -1 where there is none."""
    is_reversed: bool


def _lines(by_score: Sequence[Criterion]) -> Iterator[_Line]:
    """Give a line of the highest scores of each criterion; one of the lowest, where these are the
    better ones.
    """
    for criterion in by_score:
        name = visible(criterion.score).replace("_", " ")
        label = name
        if criterion.spearman:
            label += f" (rank correlation {criterion.spearman.value:.2f})"
        sides = [(label, criterion.highest, False)]
        if criterion.better_reversed:
            sides.append((f"{name}, lowest first", criterion.lowest, True))
        for title, at_shares, is_reversed in sides:
            pairs = zip(SHARES, at_shares, strict=True)
            success = {share: payoff.success.value for share, payoff in pairs if payoff}
            yield _Line(
                title, [*success], [*success.values()], success.get(SORTED_AT, -1.0), is_reversed
            )


def _columns(rows: Sequence[Estimate | Draws | None]) -> np.ndarray:
    """Return the value, low and high of every row, NaN for null."""
    return np.array([row or [np.nan] * 3 for row in rows], dtype=float).reshape(-1, 3).T


def _features(steering: pd.DataFrame) -> pd.DataFrame:
    return features_alone(steering)


def _subtitle(features: pd.DataFrame) -> str:
    layers = features["layer"].to_numpy()
    if len({*layers.tolist()}) == 1:
        return subtitle(features)
    return f"{subtitle(features)}{style.SEPARATOR}layers {layers.min()} to {layers.max()}"
