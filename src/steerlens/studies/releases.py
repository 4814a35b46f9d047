"""Which of several SAE releases to steer with?

A release is ranked by what its user gets: the mean success@20, at each feature's best factor, of
the features that a filter by output score keeps (S_out >= 0.1). Next to that stand what it has to
offer (steerable features, per feature, per dictionary and per parameter), how many words it can
steer toward, and what it is as an SAE. Intervals are 95 % bootstrap intervals over features, or
over words.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steerlens.analysis.coverage import covered
from steerlens.analysis.payoff import payoff
from steerlens.analysis.resampling import difference, mean_estimate
from steerlens.analysis.series import Series
from steerlens.analysis.summary import HYBRID, THRESHOLDS
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.results.table import names
from steerlens.studies import Answer, interval_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEERABLE = THRESHOLDS[1]
"""From this output score on a feature is one to steer with."""

RANKED_BY = ("success", "steerable_0.1")
"""The first that is known of all releases ranks them."""


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """The releases in the order of what steering with them gives, the best first.

    Raises:
        SteerlensError: they are for different models and `by_depth` is off, or no layer is common
            to all.
    """
    models = list(dict.fromkeys(name for one in series for name in names(one.tables.saes, "model")))
    if len(models) > 1 and not config.by_depth:
        raise SteerlensError(
            f"these SAEs are for different models ({', '.join(models)}); to compare them by "
            "relative depth, add study.by_depth=true."
        )
    said: list[str] = []
    if not config.by_depth:
        series, said = _common_layers(series)
    rows = pd.DataFrame([_row(one) for one in series])
    by = next((name for name in RANKED_BY if rows[name].notna().all()), RANKED_BY[-1])
    order = rows.sort_values(by, ascending=False, kind="stable").index.tolist()
    ranked = rows.loc[order].reset_index(drop=True)
    ranked.insert(0, "rank", np.arange(1, len(ranked) + 1))
    ranked = ranked.drop(columns=[name for name in ranked if ranked[name].isna().all()])
    by_layer = pd.DataFrame([row for one in series for row in _by_layer(one)])
    return Answer(
        sentences=[*_sentences([series[at] for at in order], ranked, by), *said],
        tables={"releases": ranked, "releases_by_layer": by_layer},
        figures={
            "releases": partial(_draw, ranked),
            "releases_by_layer": partial(_draw_layers, by_layer, config.by_depth),
        },
    )


def _common_layers(series: Sequence[Series]) -> tuple[list[Series], list[str]]:
    """The results of the layers that all have, and in a sentence which have others, too."""
    layers = [set(one.tables.features["layer"].tolist()) for one in series]
    common = set.intersection(*layers)
    if not common:
        raise SteerlensError("the releases have no layer in common.")
    said = [
        f"{one.label} also has layer {', '.join(map(str, sorted(more - common)))}, which not all "
        "have: left out."
        for one, more in zip(series, layers, strict=True)
        if more - common
    ]
    return [one.of_layers(common) for one in series], said


def _row(one: Series) -> dict[str, Any]:
    """What is known of a release over all of its layers; None for what isn't."""
    saes = one.tables.saes
    return {
        "release": one.label,
        **_measures(one),
        "layers": saes["layer"].nunique(),
        "d_sae": ", ".join(str(size) for size in sorted(saes["d_sae"].dropna().unique())),
        "model": ", ".join(names(saes, "model")),
        "seconds": one.seconds,
    }


def _by_layer(one: Series) -> list[dict[str, Any]]:
    return [
        {
            "release": one.label,
            "layer": int(sae["layer"]),
            "depth": int(sae["layer"]) / max(1, int(sae["n_layers"]) - 1),
            **_measures(one.of_layers({int(sae["layer"])})),
        }
        for sae in one.tables.saes.to_dict("records")
    ]


def _measures(one: Series) -> dict[str, Any]:
    features, saes = one.tables.features, one.tables.saes
    scores = features["output_score"].dropna().to_numpy(dtype=float)
    inputs = features["input_score"].dropna().to_numpy(dtype=float)
    both = features.dropna(subset=["output_score", "input_score"])
    hybrid = (both["output_score"] >= HYBRID) & (both["input_score"] >= HYBRID)
    steerable = mean_estimate(scores >= STEERABLE)
    steered = payoff(one.tables.steering, threshold=STEERABLE)
    per_sae = steerable.value * (_mean(saes["d_sae"]) or np.nan) if steerable else None
    parameters = _mean(saes["parameters"])
    return {
        **interval_columns("success", steered.success if steered else None),
        **interval_columns("payoff", steered.over_unfiltered if steered else None),
        **interval_columns("covered", mean_estimate(covered(one.tables.coverage))),
        "words": one.tables.coverage["word"].nunique() or None,
        **interval_columns("steerable_0.01", mean_estimate(scores >= THRESHOLDS[0])),
        **interval_columns("steerable_0.1", steerable),
        "steerable_per_sae": per_sae,
        "steerable_per_million_parameters": per_sae and parameters and per_sae / parameters * 1e6,
        **_quartiles("output_score", scores),
        **_quartiles("input_score", inputs),
        **interval_columns("hybrids", mean_estimate(hybrid.to_numpy(dtype=bool))),
        "explained_variance": _mean(saes["explained_variance"]),
        "l0": _mean(saes["l0"]),
        "dead_share": _mean(saes["dead_share"]),
        "features": len(features),
    }


def _quartiles(name: str, values: np.ndarray) -> dict[str, float | None]:
    found = np.quantile(values, [0.25, 0.5, 0.75]).tolist() if len(values) else [None] * 3
    return dict(zip((f"{name}_q25", f"{name}_median", f"{name}_q75"), found, strict=True))


def _mean(column: pd.Series) -> float | None:
    known = column.dropna()
    return float(known.mean()) if len(known) else None


def _sentences(series: Sequence[Series], ranked: pd.DataFrame, by: str) -> list[str]:
    """Which release is best, and which the data can't tell apart."""
    if len(series) == 1:
        return ["There is one release only; give several, such as sae=A,B, to compare them."]
    first = ranked.iloc[0]
    what = {
        "success": f"mean success@20 of the features with S_out >= {STEERABLE:g} at their best "
        "factor",
        "steerable_0.1": f"the share of the features with S_out >= {STEERABLE:g}",
    }[by]
    low, high = first[f"{by}_low"], first[f"{by}_high"]
    between = "" if pd.isna(low) else f" (95 % interval {low:.3g} to {high:.3g})"
    said = [f"Ranked by {what}: {first['release']} is first with {first[by]:.3g}{between}."]
    unclear, clear = [], []
    for one, other in itertools.pairwise(series):
        found = difference(_values(one, by), _values(other, by))
        pair = f"{one.label} from {other.label}"
        if found is None:
            continue
        if found.low is None or found.high is None or found.low <= 0 <= found.high:
            unclear.append(pair)
        else:
            clear.append(f"{pair} ({found.value:.3g}, {found.low:.3g} to {found.high:.3g})")
    if clear:
        said.append(f"The data separate {'; '.join(clear)}.")
    if unclear:
        said.append(f"They can't separate {'; '.join(unclear)}.")
    return said


def _values(one: Series, by: str) -> np.ndarray:
    """What the mean that ranks is made of, one number for each feature."""
    if by == "success":
        own = one.tables.steering.loc[one.tables.steering["control"].isna()]
        kept = own.loc[(own["output_score"] >= STEERABLE).fillna(False)]
        return kept["success_20"].dropna().to_numpy(dtype=float)
    return one.tables.features["output_score"].dropna().to_numpy(dtype=float) >= STEERABLE


PANELS = {
    "success": f"success@20, S_out >= {STEERABLE:g}",
    "covered": "share of words covered",
    "steerable_0.1": f"share of features with S_out >= {STEERABLE:g}",
    "payoff": "success filtered / unfiltered",
}


def _draw(ranked: pd.DataFrame) -> Figure:
    """Every measure with its interval, the best release on top."""
    from steerlens.figures import style
    from steerlens.text import visible

    panels = [name for name in PANELS if name in ranked]
    figure = style.new_figure(2.2 + 2.8 * len(panels), 1.6 + 0.35 * len(ranked))
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    place = np.arange(len(ranked))
    for axes, name in zip(row, panels, strict=True):
        value, low, high = (
            ranked[key].to_numpy(dtype=float) for key in (name, f"{name}_low", f"{name}_high")
        )
        axes.hlines(place, low, high, color=style.BLUE, lw=1.6)
        axes.plot(value, place, "o", color=style.BLUE)
        axes.set_xlabel(PANELS[name])
    row[0].set_yticks(place, [visible(label) for label in ranked["release"]], parse_math=False)
    row[0].set_ylim(len(ranked) - 0.5, -0.5)
    style.headline(figure, "SAE releases", "means with 95 % intervals, the best first")
    return figure


def _draw_layers(by_layer: pd.DataFrame, by_depth: bool) -> Figure:
    """Both scores and success by layer, or by relative depth."""
    import matplotlib

    from steerlens.figures import style
    from steerlens.text import visible

    titles = {
        "output_score_median": "median S_out",
        "steerable_0.1": PANELS["steerable_0.1"],
        "input_score_median": "median S_in",
        "success": PANELS["success"],
    }
    panels = [name for name in titles if by_layer[name].notna().any()]
    figure = style.new_figure(1.5 + 3.4 * len(panels), 4.2)
    row = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    colors = matplotlib.colormaps["tab10"]
    for axes, name in zip(row, panels, strict=False):
        for index, (label, rows) in enumerate(by_layer.groupby("release", sort=False)):
            x = rows["depth" if by_depth else "layer"].to_numpy(dtype=float)
            y = rows[name].to_numpy(dtype=float)
            axes.plot(x, y, "o-", color=colors(index % 10), label=visible(str(label)))
        axes.set_xlabel("relative depth" if by_depth else "layer")
        axes.set_title(titles[name])
    handles, labels = row[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3)
    for text in legend.get_texts():
        text.set_parse_math(False)
    style.headline(figure, "SAE releases", "by relative depth" if by_depth else "by layer")
    return figure
