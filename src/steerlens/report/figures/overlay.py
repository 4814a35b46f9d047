"""Several results in the same figure: scores by layer (paper Figures 3, 9), their distribution,
success by threshold, hybrids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from steerlens.analysis.payoff import threshold_curve
from steerlens.analysis.series import Series
from steerlens.analysis.summary import HYBRID, hybrids
from steerlens.report.figures import FIGURES_FOLDER, style
from steerlens.report.figures.input_output import BOTH
from steerlens.report.figures.output_score import FLOOR, LOWEST, MARKS, S_OUT
from steerlens.report.figures.threshold import SUCCESS, shown_thresholds
from steerlens.results.table import names
from steerlens.results.text import visible

LABEL = 60
"""Characters of a label; more would leave no room for the plot."""


def draw_overlay(series: Sequence[Series], folder: Path) -> dict[str, list[Path]]:
    """Draw all figures for which at least one of `series` has data; gives their files by name."""
    figures: dict[str, Callable[[Sequence[Series]], Figure | None]] = {
        "scores_by_layer": by_layer,
        "score_distributions": distributions,
        "success_by_threshold": by_threshold,
        "hybrid_ratios": hybrid_ratios,
    }
    drawn = {}
    for name, draw in figures.items():
        with style.look():
            figure = draw(series)
            if figure is not None:
                drawn[name] = style.save(figure, Path(folder) / FIGURES_FOLDER, name)
    return drawn


def by_layer(series: Sequence[Series]) -> Figure | None:
    """Return medians of both scores in every layer, with quartiles; one column of panels per
    model.
    """
    scores = [column for column in BOTH if any(_has(member, column[0]) for member in series)]
    models = list(dict.fromkeys(_model(member) for member in series))
    layers = {layer for member in series for layer in member.tables.features["layer"].tolist()}
    if not scores or len(layers) < 2:  # of one layer the distributions say more
        return None
    figure = style.new_figure(min(4 + 3.2 * len(models), 18), 1.6 + 2.5 * len(scores))
    grid = figure.subplots(len(scores), len(models), squeeze=False, sharey="row")
    for row, (column, name, symbol) in zip(grid, scores, strict=True):
        log, of_means = _spans_decades(series, column), _medians_are_zero(series, column)
        for axes, model in zip(row, models, strict=True):
            for member, color, line in _styled(series):
                if _model(member) == model and _has(member, column):
                    if of_means:
                        _means(axes, member, column, color, line)
                    else:
                        _medians(axes, member, column, color, line, FLOOR if log else 0.0)
                    if column == "output_score":
                        _null_medians(axes, member, color, FLOOR if log else 0.0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if log:
                axes.set_yscale("log")
        row[0].set_ylabel(f"{'mean ' if of_means else ''}{name} {symbol}")
    for axes, model in zip(grid[0], models, strict=True):
        axes.set_title(visible(model), parse_math=False)
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    _legend(figure, series)
    parts = ["median and quartiles of the features"]
    if any(_medians_are_zero(series, column) for column, _, _ in scores):
        parts.append("where medians are 0: mean, up to the 90th percentile")
    if any(len(member.tables.null_scores) for member in series):
        parts.append("dotted: median of random directions")
    style.headline(figure, "Scores by layer", _counted(series), style.SEPARATOR.join(parts))
    return figure


def distributions(series: Sequence[Series]) -> Figure | None:
    """Return the share of features with at least the score on the x axis."""
    scores = [column for column in BOTH if any(_has(member, column[0]) for member in series)]
    if not scores:
        return None
    figure = style.new_figure(5 + 3.6 * len(scores), 4.4)
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    for axes, (column, name, symbol) in zip(panels, scores, strict=True):
        grid = np.linspace(0, 1, 400)
        if column == "output_score":
            values = np.concatenate([_values(member, column) for member in series])
            lowest = float(np.quantile(values, LOWEST))
            grid = np.geomspace(
                np.clip(10 ** np.floor(np.log10(lowest or FLOOR)), FLOOR, 1e-3), 1, 400
            )
        for member, color, line in _styled(series):
            values = np.sort(_values(member, column))
            if len(values):
                share = 1 - np.searchsorted(values, grid) / len(values)
                axes.plot(grid, share, color=color, ls=line, lw=1.6)
        if column == "output_score":
            axes.set_xscale("log")
        for threshold, color, _ in MARKS:
            axes.axvline(threshold, color=color, ls=":", lw=1)
        axes.set(xlabel=f"{name} {symbol}", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_ylabel("share of features with at least this score")
    _legend(figure, series)
    how = f"share of a result's features; dotted: {' and '.join(f'{at:g}' for at, *_ in MARKS)}"
    style.headline(figure, "Distribution of the scores", _counted(series), how)
    return figure


def by_threshold(series: Sequence[Series]) -> Figure | None:
    """Return the success of the features with S_out of at least each threshold (Figures 4, 5,
    10).
    """
    curves = [
        (member, [point for point in threshold_curve(member.tables.steering) if point.success])
        for member in series
        if all(
            member.tables.steering[column].notna().any()
            for column in ("output_score", "success_20")
        )
    ]
    curves = [(member, points) for member, points in curves if points]
    if not curves:
        return None
    look = {id(member): (color, line) for member, color, line in _styled(series)}
    figure = style.new_figure(8.6, 4.6)
    axes = figure.subplots()
    for member, points in curves:
        color, line = look[id(member)]
        estimates = [point.success for point in points]
        thresholds = [point.threshold for point in points]
        low = [
            estimate.low if estimate.low is not None else estimate.value
            for estimate in estimates
            if estimate
        ]
        high = [
            estimate.high if estimate.high is not None else estimate.value
            for estimate in estimates
            if estimate
        ]
        axes.fill_between(thresholds, low, high, color=color, alpha=0.12, lw=0)
        values = [estimate.value for estimate in estimates if estimate]
        axes.plot(thresholds, values, color=color, ls=line, marker="o", ms=3)
    axes.set(xscale="log", xlabel=f"threshold t of the output score {S_OUT}", ylabel=SUCCESS)
    axes.set_xlim(*shown_thresholds(*(points for _, points in curves)))
    axes.set_ylim(bottom=0)
    _legend(figure, series)
    n = style.n_of((points[0].selected for _, points in curves), "feature")
    title, how = "Success of the features above a threshold", "means with 95 % intervals"
    style.headline(figure, title, f"{n} steered with", how)
    return figure


def hybrid_ratios(series: Sequence[Series]) -> Figure | None:
    """Return how often both scores are high in one feature, beside what independence would give."""
    counts_of = [(member, hybrids(member.tables.features)) for member in series]
    with_ratio = [
        (member, counts) for member, counts in counts_of if counts and counts["ratio"] is not None
    ]
    if not with_ratio:
        return None
    look = {id(member): color for member, color, _ in _styled(series)}
    figure = style.new_figure(8.6, 1.9 + 0.34 * len(with_ratio))
    axes = figure.subplots()
    for y, (member, counts) in enumerate(with_ratio):
        low, high = counts["ratio_interval"] or (counts["ratio"], counts["ratio"])
        axes.hlines(y, low, high, color=look[id(member)], lw=2.5)
        axes.plot(counts["ratio"], y, "o", color=look[id(member)], ms=6)
    axes.axvline(1, color=style.MUTED, ls="--", lw=1.2)
    label_of = dict(zip(map(id, series), _labels(series), strict=True))
    labels = [f"{label_of[id(m)]} (n = {counts['features']:,})" for m, counts in with_ratio]
    axes.set_yticks(range(len(with_ratio)), labels, parse_math=False)
    axes.set_ylim(len(with_ratio) - 0.5, -0.5)
    axes.set_xlabel("times the share if independent")
    n = style.n_of((counts["features"] for _, counts in with_ratio), "feature")
    how = (
        f"share of features with both scores ≥ {HYBRID:g}, over what it would be if the scores "
        "were independent; lines are 95 % intervals"
    )
    style.headline(figure, "High input and output scores in one feature", n, how)
    return figure


def _medians(axes: Axes, member: Series, column: str, color: str, line: str, floor: float) -> None:
    frame = member.tables.features
    with_values = frame.loc[frame[column].notna(), ["layer", column]]
    groups = with_values.astype({column: float}).groupby("layer")[column]
    q25, median, q75 = (np.maximum(groups.quantile(q), floor) for q in (0.25, 0.5, 0.75))
    layers = median.index.to_numpy()
    axes.fill_between(layers, q25, q75, color=color, alpha=0.12, lw=0)
    axes.plot(layers, median, color=color, ls=line, marker="o", ms=3.5)


def _means(axes: Axes, member: Series, column: str, color: str, line: str) -> None:
    frame = member.tables.features
    groups = frame.loc[frame[column].notna()].astype({column: float}).groupby("layer")[column]
    mean, high = groups.mean(), groups.quantile(0.9)
    layers = mean.index.to_numpy()
    axes.fill_between(layers, 0, high, color=color, alpha=0.12, lw=0)
    axes.plot(layers, mean, color=color, ls=line, marker="o", ms=3.5)


def _null_medians(axes: Axes, member: Series, color: str, floor: float) -> None:
    """Draw the medians of random directions, if they were scored."""
    scores = member.tables.null_scores.astype({"output_score": float})
    median = scores.groupby("layer")["output_score"].median()
    if len(median):
        layers = median.index.to_numpy(dtype=float)
        axes.plot(layers, np.maximum(median, floor), color=color, ls=":", marker=".", lw=1.2)


def _layer_medians(series: Sequence[Series], column: str) -> list[float]:
    return [
        value
        for member in series
        if _has(member, column)
        for value in member.tables.features.groupby("layer")[column].median().dropna()
    ]


def _medians_are_zero(series: Sequence[Series], column: str) -> bool:
    """Return whether lines through the medians would lie at 0."""
    medians = _layer_medians(series, column)
    return bool(medians) and 2 * medians.count(0.0) > len(medians)


def _spans_decades(series: Sequence[Series], column: str) -> bool:
    """Return whether medians need a logarithmic axis, as those from 1e-7 to 0.5 do."""
    positive = [value for value in _layer_medians(series, column) if value > 0]
    return bool(positive) and column == "output_score" and max(positive) > 100 * min(positive)


def _styled(series: Sequence[Series]) -> list[tuple[Series, str, str]]:
    """Return a colour and a line for each: few in colours told apart by everybody, many in an
    order.
    """
    if len(series) <= len(style.PALETTE):
        colors = list(style.PALETTE[: len(series)])
    else:
        places = np.linspace(0, 0.95, len(series))
        colors = [to_hex(position) for position in matplotlib.colormaps["viridis"](places)]
    lines = ["-", "--", "-.", ":"]
    return [
        (member, color, lines[index % 4 if len(series) <= len(style.PALETTE) else 0])
        for index, (member, color) in enumerate(zip(series, colors, strict=True))
    ]


def _legend(figure: Figure, series: Sequence[Series]) -> None:
    labels = _labels(series)
    handles = [
        Line2D([], [], color=color, ls=line, label=label)
        for label, (_, color, line) in zip(labels, _styled(series), strict=True)
    ]
    # Under the plots, whose width it would take beside them, in as many columns as fit.
    columns = max(1, int(figure.get_figwidth() / (0.7 + 0.085 * max(map(len, labels)))))
    legend = figure.legend(handles=handles, loc="outside lower left", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names may hold dollars
    # Many results need their place: it isn't taken from the plots.
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)


def _labels(series: Sequence[Series]) -> list[str]:
    labels = map(visible, style.short_labels([member.label for member in series]))
    return [label if len(label) <= LABEL else label[: LABEL - 1] + "…" for label in labels]


def _counted(series: Sequence[Series]) -> str:
    """Return how many features each result has; said once where all have as many."""
    sizes = list(dict.fromkeys(len(member.tables.features) for member in series))
    return f"{', '.join(f'{size:,}' for size in sizes[:6])} features{' each' * (len(sizes) == 1)}"


def _model(member: Series) -> str:
    return ", ".join(names(member.tables.features, "model")) or "?"


def _values(member: Series, column: str) -> np.ndarray:
    return member.tables.features[column].dropna().to_numpy(dtype=float)


def _has(member: Series, column: str) -> bool:
    return bool(member.tables.features[column].notna().any())
