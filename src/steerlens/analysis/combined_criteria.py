"""Whether two criteria together select better features to steer with than the best one alone.

Cross-validated by feature: on four fifths of each layer's features the criterion, and the pair,
whose choice has most success are picked, and each criterion is turned round if success falls with
it there; the remaining fifth tells what they keep. A pair is the mean of two criteria's ranks, in
their layer where features are kept within layers. A feature without a score is ranked last.

Dimension letters: N features, C criteria, R resamples.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from steerlens.analysis.equal_share import (
    POOLED,
    WITHIN_LAYERS,
    counts_within,
    selection_weights,
    steered_features,
)
from steerlens.analysis.payoff import SHARES, scores_of
from steerlens.analysis.resampling import (
    FEWEST,
    RESAMPLES,
    Estimate,
    estimate,
    over_as_many_in_each_group,
)

if TYPE_CHECKING:
    import pandas as pd

FOLDS = 5
COMBINED_SHARE = SHARES[1]


class Combined(NamedTuple):
    """What the best criterion and the best pair keep of features that didn't choose them."""

    pooling: str
    """pooled, or within layers."""
    share: float
    features: int
    """How many are kept, by each."""
    single: str
    """The criterion that most folds pick, and in how many."""
    pair: str
    single_payoff: Estimate
    """Success over that of as many at random, within layers of as many of each layer."""
    pair_payoff: Estimate
    pair_less_single: Estimate


def combined_criteria(
    steering: pd.DataFrame, seed: int = 0, success: str = "success_20"
) -> list[Combined]:
    """Return the comparison pooled and within layers; [] of fewer than three criteria, where fewer
    than `FEWEST` features would be kept, or without any success.
    """
    rows, success_N, layers_N = steered_features(steering, success)
    if len(rows) * COMBINED_SHARE < FEWEST:
        return []
    scores = {
        name: rows[name].to_numpy(dtype=float, na_value=np.nan)
        for name in scores_of(rows)
        if len(set(rows[name].dropna().tolist())) > 1
    }
    if len(scores) < 3 or not success_N.any():
        return []
    rng = np.random.default_rng(seed)
    fold_N = _folds(layers_N, rng)
    counts_RN = counts_within(layers_N, RESAMPLES, rng)
    return [
        _compared(pooling, scores, success_N, groups_N, fold_N, counts_RN)
        for pooling, groups_N in ((POOLED, np.zeros_like(layers_N)), (WITHIN_LAYERS, layers_N))
    ]


def _folds(layers_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the fold of each feature, as many of each layer in every fold as can be."""
    fold_N = np.empty(len(layers_N), dtype=int)
    for layer in np.unique(layers_N):
        (members,) = np.nonzero(layers_N == layer)
        fold_N[members] = rng.permutation(len(members)) % FOLDS
    return fold_N


def _compared(
    pooling: str,
    scores: Mapping[str, np.ndarray],
    success_N: np.ndarray,
    groups_N: np.ndarray,
    fold_N: np.ndarray,
    counts_RN: np.ndarray,
) -> Combined:
    weights = np.zeros((2, len(success_N)))
    picked: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for fold in range(FOLDS):
        train_N, test_N = fold_N != fold, fold_N == fold
        ranks = {
            name: _oriented(score_N, success_N, groups_N, train_N)
            for name, score_N in scores.items()
        }
        pairs = {
            f"{first} + {second}": ranks[first] + ranks[second]
            for first, second in itertools.combinations(ranks, 2)
        }
        for at, candidates in enumerate((ranks, pairs)):
            best = _best(candidates, success_N, groups_N, train_N)
            picked[at][best] += 1
            (of_test,) = selection_weights(
                {best: candidates[best][test_N]}, COMBINED_SHARE, groups_N[test_N]
            ).values()
            weights[at, test_N] = of_test
    each_1N = np.ones((1, len(success_N)))
    (value_2,) = over_as_many_in_each_group(weights, success_N, groups_N, each_1N)
    resampled_R2 = over_as_many_in_each_group(weights, success_N, groups_N, counts_RN)
    features = round(weights[0].sum())
    single, pair = (estimate(float(value_2[at]), resampled_R2[:, at], features) for at in range(2))
    difference_R = resampled_R2[:, 1] - resampled_R2[:, 0]
    difference = estimate(float(value_2[1] - value_2[0]), difference_R, features)
    commonest = [counts.most_common(1)[0] for counts in picked]
    of_single, of_pair = (f"{name} ({n} of {FOLDS} folds)" for name, n in commonest)
    return Combined(pooling, COMBINED_SHARE, features, of_single, of_pair, single, pair, difference)


def _oriented(
    score_N: np.ndarray, success_N: np.ndarray, groups_N: np.ndarray, train_N: np.ndarray
) -> np.ndarray:
    """Return ranks from 0 to 1 inside groups, (N,), so that success rises with them in training."""
    from scipy.stats import rankdata, spearmanr

    has_N = ~np.isnan(score_N)
    usable = has_N & train_N
    constant = len(np.unique(score_N[usable])) < 2 or len(np.unique(success_N[usable])) < 2
    correlation: Any = None if constant else spearmanr(score_N[usable], success_N[usable])
    falls = correlation is not None and correlation.statistic < 0
    rank_N = np.zeros(len(score_N))
    for group in np.unique(groups_N):
        members = has_N & (groups_N == group)
        if members.any():
            values = -score_N[members] if falls else score_N[members]
            rank_N[members] = rankdata(values) / members.sum()
    return rank_N


def _best(
    candidates: Mapping[str, np.ndarray],
    success_N: np.ndarray,
    groups_N: np.ndarray,
    train_N: np.ndarray,
) -> str:
    """Return the candidate whose choice of the training features has most success."""
    weights = selection_weights(
        {name: rank_N[train_N] for name, rank_N in candidates.items()},
        COMBINED_SHARE,
        groups_N[train_N],
    )
    return max(weights, key=lambda name: float(weights[name] @ success_N[train_N]))
