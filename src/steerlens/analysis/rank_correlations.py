"""How criteria go with an outcome of features, corrected for their number.

Rank correlations with intervals that are simultaneous over all criteria, from bootstrap samples
within layers, as `equal_share` has them for what a criterion buys.

Dimension letters: N features, n of them with the score, C criteria, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from steerlens.analysis.equal_share import POOLED, WITHIN_LAYERS, counts_within, simultaneous
from steerlens.analysis.resampling import FEWEST, RESAMPLES, Estimate, rank_correlations


class RankCorrelation(NamedTuple):
    """A criterion's rank correlation with an outcome, beside those of all others."""

    score: str
    features: int
    """How many have the score."""
    spearman: Estimate
    """With the simultaneous interval of all criteria."""
    p: float
    """Two-sided p-value of no correlation, corrected for the number of criteria."""


def rank_correlation(
    score_n: np.ndarray, outcome_n: np.ndarray, groups_n: np.ndarray, counts_Rn: np.ndarray
) -> np.ndarray:
    """Return Spearman's correlation (R,) of a score with an outcome, by ranks in each group, of
    features that are there `counts_Rn` times; NaN where one of the two is constant.
    """
    a_n, b_n = (np.unique(x_n, return_inverse=True)[1] for x_n in (score_n, outcome_n))
    return rank_correlations(a_n, b_n, counts_Rn, groups_n)


def correlations_at_once(
    scores: Mapping[str, np.ndarray],
    outcome_N: np.ndarray,
    layers_N: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    pooling: str = POOLED,
) -> list[RankCorrelation]:
    """Return the rank correlation of every criterion with the outcome; one that is constant, or of
    fewer than `FEWEST` features, is left out.

    Args:
        scores: (N,) each, NaN where a feature has none.
        outcome_N: what criteria may tell.
        layers_N: each feature's layer, as a number from 0; samples have as many of each.
        resamples: number of bootstrap samples.
        seed: which.
        pooling: pooled, or within layers: by each feature's rank in its layer.
    """
    ranked_in_N = layers_N if pooling == WITHIN_LAYERS else np.zeros_like(layers_N)
    counts_RN = counts_within(layers_N, resamples, np.random.default_rng(seed))
    once_1N = np.ones((1, len(outcome_N)))
    value_of: dict[str, float] = {}
    resampled = []
    for name, score_N in scores.items():
        has = ~np.isnan(score_N)
        if has.sum() < FEWEST:
            continue
        data = (score_N[has], outcome_N[has], ranked_in_N[has])
        (value,) = rank_correlation(*data, once_1N[:, has])
        if np.isfinite(value):
            value_of[name] = float(value)
            resampled.append(rank_correlation(*data, counts_RN[:, has]))
    if not value_of:
        return []
    value_C = np.array([*value_of.values()])
    resampled_RC = np.stack(resampled, axis=1)
    width_C, p_C = simultaneous(value_C, resampled_RC, null=0.0)
    low_C, high_C = np.maximum(value_C - width_C, -1), np.minimum(value_C + width_C, 1)
    return [
        RankCorrelation(
            score=name,
            features=int((~np.isnan(scores[name])).sum()),
            spearman=Estimate(value, low, high),
            p=p,
        )
        for (name, value), low, high, p in zip(
            value_of.items(), low_C.tolist(), high_C.tolist(), p_C.tolist(), strict=True
        )
    ]
