"""Ratings of steered texts, by how SAE features are filtered and by how hard they are steered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlens.analysis.resampling import Estimate
from steerlens.config.schema import STEERED_BY
from steerlens.report.figures import style

FIRST = ("SAE", "Prompt", "DiffMean", "ReFT-r1", "LoRA", "Random", "No steering")
METHODS = (*FIRST, *(method for method in STEERED_BY if method not in FIRST))
"""In the order in which they get a colour; beyond the palette the same ones with other markers."""

FEW = 3
"""More lines are drawn without their intervals, which would lie over each other."""


NEAR = 0.04
"""Reference lines closer than this share of the axis have one label."""


class References(NamedTuple):
    """Ratings that others have published, drawn as thin lines."""

    note: str
    """Whose they are, of which model and by which judge."""
    rating_of: Mapping[str, float]
    """By method, 0 to 2."""


class Curve(NamedTuple):
    """A method's estimates at every x; without x one estimate, a level line."""

    name: str
    x: Sequence[float]
    estimates: Sequence[Estimate | None]


def draw_by_threshold(
    by_layer: Mapping[int, Sequence[Curve]], counted: str, judge: str, references: References
) -> Figure:
    """Return the overall rating against the least output score, a panel for every layer."""
    figure = _panels(by_layer, "least output score", references)
    style.headline(
        figure,
        "What filtering SAE features by output score does to the rating",
        counted,
        f"{judge}, mean over the concepts that have a feature left, with its 95 % "
        f"bootstrap interval over concepts; level lines are other methods. Grey: {references.note}",
    )
    return figure


def draw_by_factor(
    by_layer: Mapping[int, Sequence[Curve]], counted: str, judge: str, references: References
) -> Figure:
    """Return the overall rating against the steering factor, a panel for every layer."""
    figure = _panels(by_layer, "steering factor", references)
    factors = sorted({x for curves in by_layer.values() for curve in curves for x in curve.x})
    for axes in figure.axes:
        labels = [f"{factor:g}" for factor in factors]
        axes.set_xticks(factors, labels, rotation=0 if len(factors) <= 8 else 90)
        axes.set_xticks([], minor=True)
    style.headline(
        figure,
        "How hard to steer",
        counted,
        f"{judge}, mean over concepts on the prompts that choose the factor; level lines are "
        f"methods without a factor. Grey: {references.note}",
    )
    return figure


def _look(name: str, further: list[str]) -> dict[str, Any]:
    """Return a method's colour and marker: ours have the same in every figure."""
    method = re.sub(r", filtered$| \(.*\)$", "", name)
    index = METHODS.index(method) if method in METHODS else len(METHODS) + further.index(name)
    # Ink is of no steering alone, with which all are compared.
    n_shared = len(style.PALETTE) - 1
    more, color = divmod(index - len(FIRST), n_shared) if index >= len(FIRST) else (-1, index)
    return {
        "color": style.PALETTE[color],
        "marker": style.MARKERS[(more + 1) % len(style.MARKERS)],
        "dashes": (5, 3) if more < 0 else (1.5, 2),
    }


def _panels(
    by_layer: Mapping[int, Sequence[Curve]], x_label: str, references: References
) -> Figure:
    figure = style.new_figure(max(1.6 + 4.4 * len(by_layer), 7.4), 5.2)
    panels = figure.subplots(1, len(by_layer), squeeze=False, sharey=True)[0]
    names = list(dict.fromkeys(curve.name for curves in by_layer.values() for curve in curves))
    look = {name: _look(name, names) for name in names}
    for axes, (layer, curves) in zip(panels, by_layer.items(), strict=True):
        n_lines = sum(bool(curve.x) for curve in curves)
        for index, curve in enumerate(curves):
            _draw(axes, curve, look[curve.name], n_lines <= FEW, index)
        axes.set_title(f"layer {layer}")
        axes.set_xlabel(x_label)
        axes.set_xscale("log")
    panels[0].set_ylabel("overall rating (0 to 2)")
    for axes in panels:
        for rating in references.rating_of.values():
            axes.axhline(rating, lw=0.8, ls=":", color=style.MUTED, zorder=0.5)
    panels[0].set_ylim(bottom=0)
    _name_references(panels[-1], references)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = max(4, int(2 * len(by_layer) + 1))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)
    return figure


def _name_references(axes: Axes, references: References) -> None:
    """Write the names of the lines beside the last panel, those that lie together in one line."""
    near = NEAR * axes.get_ylim()[1]
    groups: list[list[tuple[float, str]]] = []
    for rating, name in sorted((rating, name) for name, rating in references.rating_of.items()):
        if not groups or rating - groups[-1][0][0] >= near:
            groups.append([])
        groups[-1].append((rating, f"{name} {rating:.2f}"))
    for group in groups:
        axes.annotate(
            "; ".join(name for _, name in group),
            (1.0, sum(rating for rating, _ in group) / len(group)),
            xycoords=axes.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
            fontsize=7, color=style.MUTED, va="center", annotation_clip=False,
        )  # fmt: skip


def _draw(
    axes: Axes, curve: Curve, look: Mapping[str, Any], with_intervals: bool, index: int
) -> None:
    color = look["color"]
    if not curve.x:
        if curve.estimates[0] is not None:
            # Dashes that begin at other places: of two lines at one rating both are seen.
            dashed: Any = (4 * index, look["dashes"])
            value = curve.estimates[0].value
            axes.axhline(value, ls=dashed, lw=1.4, color=color, label=curve.name)
        return
    drawn = [
        (x, estimate)
        for x, estimate in zip(curve.x, curve.estimates, strict=True)
        if estimate is not None
    ]
    value = np.array([estimate.value for _, estimate in drawn])
    low, high = (
        np.array([np.nan if end is None else end for end in ends], dtype=float)
        for ends in (
            [estimate.low for _, estimate in drawn],
            [estimate.high for _, estimate in drawn],
        )
    )
    x = [at for at, _ in drawn]
    axes.plot(x, value, color=color, marker=look["marker"], label=curve.name)
    if with_intervals:
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
