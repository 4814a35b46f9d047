"""Success beside what it costs, by arm: the features, and what was steered in their place."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from steerlens.analysis.arms import FEATURE, UNSTEERED
from steerlens.config.schema import RANDOM_DIRECTION, RANDOM_FEATURE
from steerlens.report.figures import style

COLORS = {
    FEATURE: style.BLUE,
    RANDOM_DIRECTION: style.ORANGE,
    RANDOM_FEATURE: style.GREEN,
    UNSTEERED: style.INK,
}
COSTS = {"degeneracy": "degeneracy", "perplexity": "perplexity (log)"}


def draw_arms(by_arm: pd.DataFrame) -> Figure:
    """Return a column for every arm, a row for every cost, a line from the weakest to the
    strongest factor; diamonds are at the factors chosen on other prompts.
    """
    names = [name for name in by_arm["arm"].unique() if name != UNSTEERED]
    figure = style.new_figure(1.2 + 3.2 * len(names), 6.4)
    grid = figure.subplots(len(COSTS), len(names), squeeze=False, sharex="row", sharey="col")
    for column, name in enumerate(names):
        for row, cost in enumerate(COSTS):
            axes, rows_of_arm = grid[row, column], by_arm.loc[by_arm["arm"].isin([name, UNSTEERED])]
            for steered, rows in rows_of_arm.groupby("steered", sort=False):
                _draw_line(axes, rows, str(steered), cost)
            axes.set_xlabel(COSTS[cost])
            axes.set_ylim(bottom=0)
            if cost == "perplexity":
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                axes.xaxis.set_major_formatter("{x:g}")
                axes.xaxis.set_minor_locator(NullLocator())
        grid[0, column].set_title(name)
    for axes in grid[:, 0]:
        axes.set_ylabel("success@20")
    handles = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    style.headline(
        figure,
        "Success and what it costs",
        style.n_of(by_arm.loc[by_arm["steered"] == FEATURE, "features"], "feature"),
        "means over features with 95 % intervals; numbers are factors, diamonds the factors that "
        "were chosen on the other half of the prompts",
    )
    return figure


def _draw_line(axes: Axes, rows: pd.DataFrame, steered: str, cost: str) -> None:
    color = COLORS[steered]
    chosen = (rows["factor"] == "chosen").to_numpy()
    x, y = (rows[name].to_numpy(dtype=float) for name in (cost, "success_20"))
    line = "" if steered == UNSTEERED else "-"
    axes.errorbar(
        x, y, _reach(rows, "success_20"), _reach(rows, cost), fmt="none", color=color, alpha=0.5,
        elinewidth=1,
    )  # fmt: skip
    axes.plot(x[~chosen], y[~chosen], f"o{line}", color=color, label=steered.replace("_", " "))
    axes.plot(x[chosen], y[chosen], "D", color=color, markerfacecolor="white", markersize=6)
    if steered == FEATURE:
        for index in np.flatnonzero(~chosen & np.isfinite(x) & np.isfinite(y)):
            axes.annotate(
                rows["factor"].iloc[index], (x[index], y[index]), fontsize=7, color=style.MUTED,
                xytext=(3, 3), textcoords="offset points",
            )  # fmt: skip


def _reach(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Return, as (2, n), how far the interval goes below and above the value; 0 where there is
    none.
    """
    value, low, high = (rows[f"{name}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    return np.nan_to_num(np.maximum([value - low, high - value], 0))
