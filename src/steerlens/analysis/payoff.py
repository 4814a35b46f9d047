"""What choosing features by a score buys in steering, from the steering table alone.

Success is a feature's mean success@20 at its best factor. Features are the rows whose `control` is
null. One without a best factor (all are over the cap) has no success: it is left out of every mean
and every selection, and counted. Intervals are 95 % bootstrap intervals over features; random
draws and intervals follow from the seed and not from the order of the rows.

Late layers have higher scores and more success, so a part of what a score buys is that it selects
layers. What it buys within them is success beside that of as many features of the same layers:
the same number from each (`within_layers`).

Dimension letters: N features, C selections, R resamples, T thresholds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from steerlens.analysis.resampling import (
    RESAMPLES,
    Draws,
    Estimate,
    counts_of_resamples,
    estimate,
    estimates_over_groups,
    mean_and_range,
    p_of_rank_correlation,
    permutation_inside,
    resampled_means,
    spearman,
    top_weights,
    weighted_means,
)
from steerlens.errors import unknown
from steerlens.results import FEATURES, SCORES, STEERING, features_alone

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = (*(10.0**power for power in range(-10, -2)), 0.01, 0.1, 0.3, 0.5, 0.7, 0.9)
"""The authors' grid of thresholds (Figures 4 and 5)."""

SHARES = (0.1, 0.25, 0.5)
"""Shares of the features that criteria are compared at."""

CRITERIA = tuple(name for name, score in SCORES.items() if score.selects)
"""Our columns by which features can be selected; numbers of other methods come after them."""

DRAWS = 10


class Point(NamedTuple):
    """The features whose score is at least `threshold`; null numbers where there are none."""

    threshold: float
    selected: int
    without_factor: int
    """Features over the threshold that are left out, because they have no best factor."""
    undecided: int = 0
    """Selected ones without success at any factor."""
    success_decided: float | None = None
    """Mean success of the others; null where there are none."""
    success: Estimate | None = None
    random: Draws | None = None
    """As many features at random."""
    shuffled: Draws | None = None
    """Selected by shuffled scores: a check of the procedure, as good as random."""
    random_within_layers: Draws | None = None
    """As many features of each layer at random: only what `success` has more is told by the score
    and not by the layer."""
    over_unfiltered: Estimate | None = None
    """success / that of all; null where that is 0."""
    over_unfiltered_within_layers: Estimate | None = None
    """success / the mean of as many features of each layer; null where that is 0."""


class Payoff(NamedTuple):
    """Success of selected features beside that of all and of as many at random."""

    selected: int
    success: Estimate
    unfiltered: float
    random: Draws
    over_unfiltered: Estimate | None
    """success / unfiltered; null where that is 0."""
    over_random: Estimate | None
    """success / mean of the random subsets; null where that is 0."""
    unfiltered_within_layers: float
    """Mean of all, each layer with the weight that it has among the selected: what as many features
    of each layer have on average."""
    random_within_layers: Draws
    """As many features of each layer at random."""
    over_unfiltered_within_layers: Estimate | None
    """success / unfiltered_within_layers; null where that is 0."""


class LayerPayoff(NamedTuple):
    """What selecting by a score buys in one layer."""

    layer: int
    features: int
    """With a best factor and the score."""
    payoff: Payoff | None
    """Null where no feature of the layer is selected."""


LEFT_OUT = 0.1
"""A threshold that leaves out a smaller share of the features selects hardly anything."""


class Criterion(NamedTuple):
    """One score as a guide to steering."""

    score: str
    scored: int
    """Features with a best factor and this score."""
    spearman: Estimate | None
    """Rank correlation with success over these; null where one of both is constant, or these are
    too few."""
    p: float | None
    """Two-sided p-value of that correlation."""
    highest: tuple[Payoff | None, ...]
    """Of the features with the highest scores, for each share; null where too few have a score."""
    lowest: tuple[Payoff | None, ...]
    """Of the features with the lowest scores."""

    @property
    def better_reversed(self) -> bool:
        """Low scores go with success: the whole interval of the correlation is below 0."""
        high = self.spearman.high if self.spearman else None
        return high is not None and high < 0


class ControlArm(NamedTuple):
    """Features beside what stood in for them, where both have a best factor."""

    pairs: int
    left_out: int
    """Features with a control, one of whose two best factors is null."""
    features: Estimate
    control: Estimate
    difference: Estimate
    """Features less control, pair by pair."""


def first_selective(selected: Sequence[int]) -> int:
    """Return where a curve over rising thresholds begins to say something: the last threshold
    before one leaves out `LEFT_OUT` of the features that the first one selects; the number of
    thresholds where none does.
    """
    most = max(selected, default=0)
    for at, number in enumerate(selected):
        if number < (1 - LEFT_OUT) * most:
            return max(0, at - 1)
    return len(selected)


def threshold_curve(
    steering: pd.DataFrame,
    score: str = "output_score",
    thresholds: Sequence[float] = THRESHOLDS,
    draws: int = DRAWS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Point]:
    """Return the success of the features with at least each threshold's score (Figures 4, 5, 10).

    Features without the score aren't part of it. For late layers give only their rows.
    """
    _check(steering, score)
    scored = _features(steering).dropna(subset=score)
    over_TN = _array(scored, score) >= np.array(thresholds)[:, None]
    rows = _with_factor(scored)
    success_N = _array(rows, "success_20")
    # Without success at any factor; no where that isn't known.
    undecided_N = rows["undecided"].fillna(value=False).to_numpy(dtype=bool)
    masks_TN = _array(rows, score) >= np.array(thresholds)[:, None]
    layers_N = _layers(rows)
    rng = np.random.default_rng(seed)
    random = [rng.permuted(masks_TN, axis=1) for _ in range(draws)]
    shuffled = [masks_TN[:, rng.permutation(len(rows))] for _ in range(draws)]
    within = [masks_TN[:, permutation_inside(layers_N, rng)] for _ in range(draws)]
    random_TD, shuffled_TD, within_TD = (
        np.transpose([weighted_means(mask_TN, success_N) for mask_TN in masks])
        for masks in (random, shuffled, within)
    )
    same = copy.deepcopy(rng)  # for the same bootstrap samples
    resampled_TR = resampled_means(masks_TN, success_N, resamples, rng)
    pooled_T, within_T = (
        estimates_over_groups(masks_TN, success_N, groups_N, resamples, copy.deepcopy(same))
        for groups_N in (np.zeros_like(layers_N), layers_N)
    )
    points = []
    for t, threshold in enumerate(thresholds):
        mask_N = masks_TN[t]
        selected = int(mask_N.sum())
        point = Point(threshold, selected, without_factor=int(over_TN[t].sum()) - selected)
        if selected:
            decided = success_N[mask_N & ~undecided_N]
            point = point._replace(
                undecided=int((mask_N & undecided_N).sum()),
                success_decided=float(decided.mean()) if len(decided) else None,
                success=estimate(success_N[mask_N].mean(), resampled_TR[t], selected),
                random=mean_and_range(random_TD[t]),
                shuffled=mean_and_range(shuffled_TD[t]),
                random_within_layers=mean_and_range(within_TD[t]),
                over_unfiltered=pooled_T[t],
                over_unfiltered_within_layers=within_T[t],
            )
        points.append(point)
    return points


def payoff(
    steering: pd.DataFrame,
    score: str = "output_score",
    threshold: float = 0.01,
    draws: int = DRAWS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    success: str = "success_20",
) -> Payoff | None:
    """Return what selecting by score >= threshold buys; None where that selects no feature.

    Unfiltered are all features with this score and a best factor; `success` is the column that is
    success.
    """
    _check(steering, score)
    rows = _with_factor(_features(steering).dropna(subset=score), success)
    mask_CN = (_array(rows, score) >= threshold)[None]
    selected, rng = int(mask_CN.sum()), np.random.default_rng(seed)
    if not selected:
        return None
    (payoffs,) = _payoffs(mask_CN, selected, rows, draws, resamples, rng, success)
    return payoffs


def payoff_beyond_unsteered(
    steering: pd.DataFrame, score: str = "output_score", threshold: float = 0.01
) -> Payoff | None:
    """Return `payoff` of success less that of unsteered texts, which have some of a feature's
    tokens anyway; None where that isn't known, or selecting selects no feature.

    A ratio to features that add nothing on average is null.
    """
    of_features = features_alone(steering)
    added = beyond_unsteered(of_features, "success_20")
    if added is None:
        return None
    return payoff(of_features.assign(added=added), score, threshold, success="added")


def beyond_unsteered(rows: pd.DataFrame, success: str) -> np.ndarray | None:
    """Return success less that of the unsteered texts of the same prompts, (N,), NaN where there is
    no success; None where a row with success lacks the latter.
    """
    if f"{success}_unsteered" not in rows:
        return None
    added_N = _array(rows, success) - _array(rows, f"{success}_unsteered")
    is_known_N = ~np.isnan(_array(rows, success))
    return None if np.isnan(added_N[is_known_N]).any() else added_N


def payoff_by_layer(
    steering: pd.DataFrame, score: str = "output_score", threshold: float = 0.01
) -> list[LayerPayoff]:
    """Return `payoff` in every layer that has a feature with this score and a best factor."""
    _check(steering, score)
    rows = _with_factor(_features(steering).dropna(subset=score))
    return [
        LayerPayoff(int(str(layer)), len(of_layer), payoff(of_layer, score, threshold))
        for layer, of_layer in rows.groupby("layer", sort=True)
    ]


def criteria(
    steering: pd.DataFrame,
    shares: Sequence[float] = SHARES,
    draws: int = DRAWS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    success: str = "success_20",
) -> list[Criterion]:
    """Return every score that is filled as a guide to steering: the same number of features by
    each.

    Unfiltered are all features with a best factor, and shares are of these; one without a score
    isn't selected by it. Features that tie for the last places count in part, so that no order of
    rows decides. Higher is taken to be better, and the opposite shown beside it.

    Args:
        steering: the table.
        shares: of the features that are selected.
        draws: number of random selections.
        resamples: number of bootstrap samples.
        seed: which.
        success: the column that is success.
    """
    rows = _with_factor(_features(steering), success)
    success_N = _array(rows, success)
    scores = {name: _array(rows, name) for name in scores_of(rows)}
    scored = {name: int((~np.isnan(score_N)).sum()) for name, score_N in scores.items()}
    filled = [name for name in scores if scored[name]]
    rng = np.random.default_rng(seed)
    by_score: dict[tuple[str, int], list[Payoff | None]] = {
        (name, sign): [] for name in filled for sign in (1, -1)
    }
    for share in shares:
        size = max(1, round(share * len(rows)))
        enough = [(name, sign) for name, sign in by_score if scored[name] >= size]
        weights = [top_weights(sign * scores[name], size) for name, sign in enough]
        payoffs = (
            _payoffs(np.array(weights), size, rows, draws, resamples, rng, success)
            if enough
            else []
        )
        at_share = dict(zip(enough, payoffs, strict=True))
        for key, listed in by_score.items():
            listed.append(at_share.get(key))
    return [
        Criterion(
            score=name,
            scored=scored[name],
            spearman=spearman(scores[name], success_N, resamples, rng),
            p=p_of_rank_correlation(scores[name], success_N),
            highest=tuple(by_score[name, 1]),
            lowest=tuple(by_score[name, -1]),
        )
        for name in filled
    ]


def control_arm(
    steering: pd.DataFrame,
    control: str = "random_direction",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ControlArm | None:
    """Return the success of features beside that of their control, each at its own best factor.

    None where no feature has a pair of best factors.
    """
    keys = list(FEATURES.keys)
    columns = [*keys, "best_factor", "success_20"]
    of_feature = _features(steering)[columns]
    of_control = steering.loc[steering["control"].eq(control).fillna(False), columns]
    both = of_feature.merge(of_control, on=keys, suffixes=("", "_control"))
    pairs = both.dropna(subset=["success_20", "success_20_control"])
    if pairs.empty:
        return None
    own_N, control_N = _array(pairs, "success_20"), _array(pairs, "success_20_control")
    values_CN = np.stack([own_N, control_N, own_N - control_N])
    n = len(pairs)
    counts = counts_of_resamples(n, resamples, np.random.default_rng(seed))
    resampled_CR = np.concatenate([values_CN @ counts_RN.T / n for counts_RN in counts], axis=1)
    estimates = [
        estimate(values_N.mean(), resampled_R, n)
        for values_N, resampled_R in zip(values_CN, resampled_CR, strict=True)
    ]
    return ControlArm(n, len(both) - n, *estimates)


def scores_of(steering: pd.DataFrame) -> list[str]:
    """Return the columns that features can be selected by: ours, then the numbers of other
    methods.
    """
    extra = [str(name) for name in steering.columns if name not in STEERING.columns]
    return [
        name
        for name in (*CRITERIA, *extra)
        if name in steering and getattr(steering[name].dtype, "kind", "") in "iuf"
    ]


def _payoffs(
    weights_CN: np.ndarray,
    size: int,
    rows: pd.DataFrame,
    draws: int,
    resamples: int,
    rng: np.random.Generator,
    success: str = "success_20",
) -> list[Payoff]:
    """Return the payoff of every row of weights, each of which selects `size` of the features
    `rows`.
    """
    success_N, layers_N = _array(rows, success), _layers(rows)
    random_DN = rng.permuted(np.tile(np.arange(len(success_N)) < size, (draws, 1)), axis=1)
    random_D = weighted_means(random_DN, success_N)
    # Subsets of one size: the mean over them is that of the features they hold, counted as often.
    columns = [*weights_CN, np.ones(len(success_N)), random_DN.sum(axis=0)]
    *means_C, unfiltered, random = weighted_means(np.array(columns), success_N)
    same = copy.deepcopy(rng)  # for the same bootstrap samples
    *resampled_CR, unfiltered_R, random_R = resampled_means(
        np.array(columns), success_N, resamples, rng
    )

    def ratio(
        mean: float, resampled_R: np.ndarray, below: float, below_R: np.ndarray
    ) -> Estimate | None:
        with np.errstate(divide="ignore", invalid="ignore"):
            positive_R = np.where(below_R > 0, below_R, np.nan)
            return estimate(mean / below, resampled_R / positive_R, size) if below > 0 else None

    # Those that tie for the last places count in part, here as there.
    within_DC = np.reshape(
        [
            weighted_means(weights_CN[:, permutation_inside(layers_N, rng)], success_N)
            for _ in range(draws)
        ],
        (draws, len(weights_CN)),
    )
    mean_N = rows[success].astype(float).groupby(layers_N).transform("mean").to_numpy()
    expected_C = weighted_means(weights_CN, mean_N)
    over_expected_C = estimates_over_groups(weights_CN, success_N, layers_N, resamples, same)
    return [
        Payoff(
            selected=size,
            success=estimate(mean, resampled_R, size),
            unfiltered=float(unfiltered),
            random=mean_and_range(random_D),
            over_unfiltered=ratio(mean, resampled_R, unfiltered, unfiltered_R),
            over_random=ratio(mean, resampled_R, random, random_R),
            unfiltered_within_layers=float(expected),
            random_within_layers=mean_and_range(within_D),
            over_unfiltered_within_layers=over_expected,
        )
        for mean, resampled_R, expected, within_D, over_expected in zip(
            means_C, resampled_CR, expected_C, within_DC.T, over_expected_C, strict=True
        )
    ]


def _features(steering: pd.DataFrame) -> pd.DataFrame:
    return features_alone(steering).sort_values(list(FEATURES.keys), ignore_index=True)


def _with_factor(rows: pd.DataFrame, success: str = "success_20") -> pd.DataFrame:
    return rows.dropna(subset=["best_factor", success], ignore_index=True)


def _layers(rows: pd.DataFrame) -> np.ndarray:
    """Return, as (N,), the number of each feature's layer; two SAEs of a layer count as two."""
    keys = ["model", "sae", "hook_name", "layer"]
    return rows.groupby(keys, dropna=False).ngroup().to_numpy()


def _array(rows: pd.DataFrame, column: str) -> np.ndarray:
    return rows[column].to_numpy(dtype=float, na_value=np.nan)


def _check(steering: pd.DataFrame, score: str) -> None:
    if score not in steering or getattr(steering[score].dtype, "kind", "") not in "iuf":
        raise unknown("score", score, scores_of(steering))
