"""Accuracy on tasks against the steering factor, beside success."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlens.report.figures import style


def draw_capability(by_factor: pd.DataFrame, success: str) -> Figure:
    """Return a panel for each task and one for success, a line for the features and each control.

    Args:
        by_factor: table of the study `capability`.
        success: the column of success.
    """
    tasks = list(dict.fromkeys(by_factor["task"]))
    arms = list(dict.fromkeys(by_factor["steered"]))
    figure = style.new_figure(1.0 + 2.6 * (len(tasks) + 1), 3.6)
    *panels, last = figure.subplots(1, len(tasks) + 1, squeeze=False)[0]
    for index, arm in enumerate(arms):
        look: dict[str, Any] = {"color": style.PALETTE[index], "marker": style.MARKERS[index]}
        of_arm = by_factor.loc[by_factor["steered"] == arm]
        for axes, task in zip(panels, tasks, strict=True):
            _draw(axes, of_arm.loc[of_arm["task"] == task], "accuracy", arm, look)
        _draw(last, of_arm.loc[of_arm["task"] == tasks[0]], success, arm, look)
    for axes, task in zip(panels, tasks, strict=True):
        axes.set_title(task)
        axes.set_ylim(0, 1)
        axes.set_ylabel("accuracy")
    last.set_title(success.replace("success_", "success@").replace("_", " "))
    last.set_ylabel("mean of the texts")
    for axes in (*panels, last):
        axes.set_xlabel("steering factor")
    handles, labels = last.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms))
    n: Any = by_factor[["features", "items"]].max()
    style.headline(
        figure,
        "What steering costs",
        f"{style.n_of([n['features']], 'feature')}, {style.n_of([n['items']], 'item')} of a task",
        "means over features; 95 % intervals over the items of a task, for success over features, "
        "where there are at least 8",
    )
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, column: str, arm: str, look: dict[str, Any]) -> None:
    rows = rows.sort_values(by="factor")
    x, y, low, high = (
        rows[name].to_numpy(dtype=float)
        for name in ("factor", column, f"{column}_low", f"{column}_high")
    )
    axes.plot(x, y, label=arm.replace("_", " "), **look)
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
