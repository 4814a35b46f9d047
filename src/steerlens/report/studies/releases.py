"""Which of several SAE releases to steer with?

A release is ranked by what its user gets: the mean success@20, at each feature's best factor, of
the features that a filter by output score keeps (S_out >= 0.1). A few of them fill their texts with
one token, so the median and the texts' degeneracy stand beside the mean. Next to that stand what it
has to offer (steerable features, per feature, per dictionary and per parameter), how many words it
can steer toward, and what it is as an SAE. Intervals are 95 % bootstrap intervals over features, or
over words.

Of different models by relative depth, the answer says in how many of them the scores go with depth,
and the filter pays.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from steerlens.analysis.coverage import by_word, covered
from steerlens.analysis.payoff import payoff
from steerlens.analysis.resampling import (
    FEWEST,
    RESAMPLES,
    difference,
    mean_estimate,
    mean_or_none,
    spearman,
)
from steerlens.analysis.series import Series
from steerlens.analysis.summary import HYBRID, STEERABLE, THRESHOLDS, null_statistics
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.figures.releases import LAYER_PANELS, PANELS, draw_layers, draw_releases
from steerlens.report.studies import Answer, interval_columns
from steerlens.results import features_alone
from steerlens.results.table import names
from steerlens.results.text import interval_of

RANKED_BY = ("success", "steerable_0.1")
"""The first that is known of all releases ranks them."""


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """Return the releases in the order of what steering with them gives, the best first.

    Raises:
        SteerlensError: they are for different models and `by_depth` is off, or no layer is common
            to all.
    """
    models = list(
        dict.fromkeys(name for member in series for name in names(member.tables.saes, "model"))
    )
    if len(models) > 1 and not config.by_depth:
        raise SteerlensError(
            f"these SAEs are for different models ({', '.join(models)}); to compare them by "
            "relative depth, add study.by_depth=true."
        )
    notes: list[str] = []
    if not config.by_depth:
        series, notes = _common_layers(series)
    rows: Any = pd.DataFrame([_row(member) for member in series])
    if config.by_depth:
        rows = rows.join(pd.DataFrame([_correlations(member) for member in series]))
    by = next((name for name in RANKED_BY if rows[name].notna().all()), RANKED_BY[-1])
    order = rows.sort_values(by, ascending=False, kind="stable").index.tolist()
    ranked = rows.loc[order].reset_index(drop=True)
    ranked.insert(0, "rank", np.arange(1, len(ranked) + 1))
    ranked = ranked.drop(columns=[name for name in ranked if not _is_known(ranked, name)])
    by_layer = pd.DataFrame([row for member in series for row in _by_layer(member)])
    return Answer(
        sentences=[
            *_sentences([series[at] for at in order], ranked, by),
            *(_depth_sentences(ranked) if config.by_depth else []),
            *notes,
        ],
        tables={"releases": ranked, "releases_by_layer": by_layer},
        figures={
            name: draw
            for name, draw, columns in (
                ("releases", partial(draw_releases, ranked), PANELS),
                (
                    "releases_by_layer",
                    partial(draw_layers, by_layer, config.by_depth),
                    LAYER_PANELS,
                ),
            )
            if any(column in ranked for column in columns)
            # A line from one layer to the next needs two.
            and (name == "releases" or max(by_layer.groupby("release").size().tolist()) > 1)
        },
    )


def _is_known(rows: Any, name: str) -> bool:
    """Return whether a column has a number; ends of intervals stay with what they are of,
    because one feature alone has no interval.
    """
    for end in ("_low", "_high"):
        if name.removesuffix(end) in rows:
            name = name.removesuffix(end)
    return not rows[name].isna().all()


def _common_layers(series: Sequence[Series]) -> tuple[list[Series], list[str]]:
    """Return the results of the layers that all have, and in a sentence which have others, too."""
    layers = [set(member.tables.features["layer"].tolist()) for member in series]
    common = set.intersection(*layers)
    if not common:
        raise SteerlensError("the releases have no layer in common.")
    notes = [
        f"{member.label} also has layer {', '.join(map(str, sorted(more - common)))}, which not "
        "all have: left out."
        for member, more in zip(series, layers, strict=True)
        if more - common
    ]
    return [member.of_layers(common) for member in series], notes


def _row(member: Series) -> dict[str, Any]:
    """Return what is known of a release over all of its layers; None for what isn't."""
    saes = member.tables.saes
    return {
        "release": member.label,
        **_measures(member),
        "layers": saes["layer"].nunique(),
        "d_sae": ", ".join(str(size) for size in sorted(saes["d_sae"].dropna().unique())),
        "model": ", ".join(names(saes, "model")),
        "seconds": member.seconds,
    }


def _correlations(member: Series) -> dict[str, Any]:
    """Return the rank correlations, over features, of both scores with layer and with success."""
    steering = member.tables.steering
    steered = features_alone(steering).dropna(subset=["best_factor", "success_20"])
    columns = {}
    for score in ("output_score", "input_score"):
        for rows, column, name in (
            (member.tables.features, "layer", f"{score}_with_depth"),
            (steered, "success_20", f"{score}_with_success"),
        ):
            with_score = rows.dropna(subset=[score])
            score_N, other_N = (with_score[key].to_numpy(dtype=float) for key in (score, column))
            estimate = spearman(score_N, other_N, RESAMPLES, np.random.default_rng(0))
            columns |= interval_columns(name, estimate)
    return columns


def _depth_sentences(ranked: Any) -> list[str]:
    """Return in how many models each finding of the paper shows; one that the data leave open
    doesn't.
    """
    sentences = []
    for name, statement, sign, level in (
        ("output_score_with_depth", "output scores rise with depth", 1, 0),
        ("input_score_with_depth", "input scores fall with depth", -1, 0),
        ("output_score_with_success", "success goes with the output score", 1, 0),
        ("input_score_with_success", "success goes with the input score", 1, 0),
        ("payoff", f"filtering by S_out >= {STEERABLE:g} makes steering better", 1, 1),
    ):
        if name not in ranked:
            continue
        measured = ranked.dropna(subset=[name, f"{name}_low", f"{name}_high"])
        if measured.empty:
            sentences.append(
                f"No model has the {FEWEST} features or more that it takes to say "
                f"whether {statement}."
            )
            continue
        end = measured[f"{name}_{'low' if sign > 0 else 'high'}"].astype(float)
        shows = sign * (end - level) > 0
        kind = "times as much success" if name == "payoff" else "rank correlation"
        listed = "; ".join(
            f"{row['release']} {interval_of(row, name)}" for row in measured.to_dict("records")
        )
        sentences.append(
            f"In {shows.sum()} of {len(measured)} models {statement}; {kind}: {listed}."
        )
    return sentences


def _by_layer(member: Series) -> list[dict[str, Any]]:
    return [
        {
            "release": member.label,
            "layer": int(sae["layer"]),
            "depth": int(sae["layer"]) / max(1, int(sae["n_layers"]) - 1),
            **_measures(member.of_layers({int(sae["layer"])})),
        }
        for sae in member.tables.saes.to_dict("records")
    ]


def _measures(member: Series) -> dict[str, Any]:
    features = member.tables.features
    saes: Any = member.tables.saes
    scores = features["output_score"].dropna().to_numpy(dtype=float)
    inputs = features["input_score"].dropna().to_numpy(dtype=float)
    both = features.dropna(subset=["output_score", "input_score"])
    hybrid = (both["output_score"] >= HYBRID) & (both["input_score"] >= HYBRID)
    steerable = mean_estimate(scores >= STEERABLE)
    steered = payoff(member.tables.steering, threshold=STEERABLE)
    per_sae = steerable.value * (mean_or_none(saes["d_sae"]) or np.nan) if steerable else None
    parameters = mean_or_none(saes["parameters"])
    null = null_statistics(features, member.tables.null_scores)
    return {
        **interval_columns("success", steered.success if steered else None),
        **_typical(_steerable(member.tables.steering)),
        **interval_columns("payoff", steered.over_unfiltered if steered else None),
        **interval_columns(
            "payoff_within_layers", steered.over_unfiltered_within_layers if steered else None
        ),
        **interval_columns("covered", mean_estimate(covered(member.tables.coverage))),
        "words": member.tables.coverage["word"].nunique() or None,
        **interval_columns("steerable_0.01", mean_estimate(scores >= THRESHOLDS[0])),
        **interval_columns("steerable_0.1", steerable),
        "random_steerable_0.1": null["output_score_null_at_least_0.1"],
        "steerable_per_sae": per_sae,
        "steerable_per_million_parameters": per_sae and parameters and per_sae / parameters * 1e6,
        **_quartiles("output_score", scores),
        **_quartiles("input_score", inputs),
        **interval_columns("hybrids", mean_estimate(hybrid.to_numpy(dtype=bool))),
        "explained_variance": mean_or_none(saes["explained_variance"]),
        "l0": mean_or_none(saes["l0"]),
        "dead_share": mean_or_none(saes["dead_share"]),
        "features": len(features),
    }


def _steerable(steering: pd.DataFrame) -> pd.DataFrame:
    """Return the features that the filter keeps, and that have a best factor."""
    of_features = features_alone(steering).dropna(subset=["best_factor", "success_20"])
    return of_features.loc[(of_features["output_score"] >= STEERABLE).fillna(False)]


def _typical(selected: Any) -> dict[str, float | None]:
    """Return what the mean success hides: that of the feature in the middle, the share of
    features without success at any factor and the mean of the others, and how texts degenerate.
    """
    success = selected["success_20"].to_numpy(dtype=float)
    undecided = selected["undecided"].fillna(value=False).to_numpy(dtype=bool)
    return {
        "success_median": float(np.median(success)) if len(success) else None,
        "undecided": float(undecided.mean()) if len(selected) else None,
        "success_decided": float(success[~undecided].mean()) if not undecided.all() else None,
        "degeneracy": mean_or_none(selected["degeneracy"]),
    }


def _quartiles(name: str, values: np.ndarray) -> dict[str, float | None]:
    quartiles = np.quantile(values, [0.25, 0.5, 0.75]).tolist() if len(values) else [None] * 3
    return dict(zip((f"{name}_q25", f"{name}_median", f"{name}_q75"), quartiles, strict=True))


def _sentences(series: Sequence[Series], ranked: Any, by: str) -> list[str]:
    """Return which release is best, and which the data can't tell apart."""
    if len(series) == 1:
        return ["There is one release only; give several, such as sae=A,B, to compare them."]
    phrase = {
        "success": f"mean success@20 of the features with S_out >= {STEERABLE:g} at their best "
        "factor",
        "steerable_0.1": f"the share of the features with S_out >= {STEERABLE:g}",
    }[by]
    sizes = [len(_values(member, by)) for member in series]
    if min(sizes) < FEWEST:
        numbers = ", ".join(
            f"{member.label} {n}" for member, n in zip(series, sizes, strict=True) if n < FEWEST
        )
        return [
            f"No release is ranked by {phrase}: there are too few such features ({numbers}; it "
            f"takes {FEWEST}).",
            *_words(series),
        ]
    unclear, clear = [], []
    for member, next_member in itertools.pairwise(series):
        gap = difference(_values(member, by), _values(next_member, by))
        pair = f"{member.label} from {next_member.label}"
        if gap is None:
            continue
        if gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
            unclear.append(pair)
        else:
            clear.append(f"{pair} ({gap.value:.3g}, {gap.low:.3g} to {gap.high:.3g})")
    first = ranked.iloc[0]
    merit = interval_of(first.to_dict(), by, ".3g", is_named=True)
    sentences = [f"Ranked by {phrase}: {first['release']} is first with {merit}."]
    if not clear:
        listed = ", ".join(f"{row['release']} {row[by]:.3g}" for row in ranked.to_dict("records"))
        sentences = [f"By {phrase} no release is surely better than the next: {listed}."]
    if clear:
        sentences.append(f"The data separate {'; '.join(clear)}.")
    if unclear:
        sentences.append(f"They can't separate {'; '.join(unclear)}.")
    return [*sentences, *(_other_order(ranked, by) if clear else []), *_words(series)]


def _other_order(ranked: Any, by: str) -> list[str]:
    """Return whether the feature in the middle ranks the releases as the mean does."""
    if by != "success" or ranked["success_median"].is_monotonic_decreasing:
        return []
    rows = ranked.sort_values("success_median", ascending=False, kind="stable").to_dict("records")
    listed = ", ".join(
        f"{row['release']} {row['success_median']:.3g}"
        + ("" if pd.isna(row.get("degeneracy")) else f" (mean degeneracy {row['degeneracy']:.2f})")
        for row in rows
    )
    return [f"Their medians come in another order, so a few features decide the means: {listed}."]


def _words(series: Sequence[Series]) -> list[str]:
    """Return of every two neighbours, the words that only one of them covers, and the exact sign
    test.
    """
    from scipy.stats import binomtest

    sentences = []
    for member, next_member in itertools.pairwise(series):
        both = [
            pd.Series(covered(coverage), by_word(coverage)["word"].tolist())
            for coverage in (member.tables.coverage, next_member.tables.coverage)
            if len(coverage)
        ]
        if len(both) < 2:
            continue
        mine_N, theirs_N = pd.concat(both, axis=1, join="inner").to_numpy(dtype=bool).T
        mine, theirs = int((mine_N > theirs_N).sum()), int((theirs_N > mine_N).sum())
        p = binomtest(mine, mine + theirs).pvalue if mine + theirs else 1.0
        sentences.append(
            f"Of {len(mine_N)} words {member.label} covers {mine_N.sum()} and {next_member.label} "
            f"{theirs_N.sum()}; {mine} and {theirs} only one of them does (exact p {p:.2g})."
        )
    return sentences


def _values(member: Series, by: str) -> np.ndarray:
    """Return what the mean that ranks is made of, one number for each feature."""
    if by == "success":
        return _steerable(member.tables.steering)["success_20"].to_numpy(dtype=float)
    return member.tables.features["output_score"].dropna().to_numpy(dtype=float) >= STEERABLE
