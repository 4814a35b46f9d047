"""Is a criterion better than the output score? Each against it on the same features, corrected for
how many there are.

What a criterion is worth (its rank correlation with an outcome, its payoff at a share kept) less
what the reference is worth, over the features that have both, in the same bootstrap samples, which
are drawn within layers. Intervals are simultaneous over all criteria but the reference (max-T).

Dimension letters: N features, n of them with both scores, C criteria, R resamples,
S the sample of each feature once, and the resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from steerlens.analysis.equal_share import (
    POOLED,
    WITHIN_LAYERS,
    counts_within,
    selection_weights,
    simultaneous,
)
from steerlens.analysis.resampling import (
    FEWEST,
    RESAMPLES,
    Estimate,
    over_as_many_in_each_group,
)

REFERENCE = "output_score"
"""The paper's criterion, against which the others are held."""

Worth = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""What a score (n,) is worth for an outcome (n,) in groups (n,), of features that are there counts
(R, n) times: (R,)."""


class Difference(NamedTuple):
    """A criterion beside the reference."""

    score: str
    features: int
    """How many have both scores."""
    value: float
    """What the criterion is worth over these."""
    reference_value: float
    difference: Estimate
    """value - reference_value, with the simultaneous interval of all criteria."""
    p: float
    """Two-sided p-value of no difference, corrected for the number of criteria."""


def payoff_of(share: float) -> Worth:
    """Return how to tell the payoff of keeping `share` of each group; see `equal_share`."""

    def payoff(
        score_n: np.ndarray, outcome_n: np.ndarray, groups_n: np.ndarray, counts_Rn: np.ndarray
    ) -> np.ndarray:
        (weight_n,) = selection_weights({"score": score_n}, share, groups_n).values()
        return over_as_many_in_each_group(weight_n[None], outcome_n, groups_n, counts_Rn)[:, 0]

    return payoff


def differences_at_once(
    worth: Worth,
    scores: Mapping[str, np.ndarray],
    outcome_N: np.ndarray,
    layers_N: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    pooling: str = POOLED,
    reference: str = REFERENCE,
) -> list[Difference]:
    """Return every criterion less the reference; one of fewer than `FEWEST` features, or that is
    worth nothing that can be told, is left out, and without the reference all are.

    Args:
        worth: `rank_correlations.rank_correlation`, or what `payoff_of` returns.
        scores: (N,) each, NaN where a feature has none.
        outcome_N: what criteria may tell.
        layers_N: each feature's layer, as a number from 0; samples have as many of each.
        resamples: number of bootstrap samples.
        seed: which.
        pooling: pooled, or within layers.
        reference: the criterion that the others are held against.
    """
    if reference not in scores:
        return []
    groups_N = layers_N if pooling == WITHIN_LAYERS else np.zeros_like(layers_N)
    counts_RN = counts_within(layers_N, resamples, np.random.default_rng(seed))
    rows: list[tuple[str, int, float, float]] = []
    resampled: list[np.ndarray] = []
    for name in (name for name in scores if name != reference):
        both = ~np.isnan(scores[name]) & ~np.isnan(scores[reference])
        if both.sum() < FEWEST:
            continue
        # The first sample is of each feature once.
        counts_Sn = np.vstack([np.ones(len(both)), counts_RN])[:, both]
        data = (outcome_N[both], groups_N[both], counts_Sn)
        own_S, reference_S = (worth(scores[score][both], *data) for score in (name, reference))
        if np.isfinite(own_S[0] - reference_S[0]):
            rows.append((name, int(both.sum()), float(own_S[0]), float(reference_S[0])))
            resampled.append((own_S - reference_S)[1:])
    if not rows:
        return []
    difference_C = np.array([value - reference_value for *_, value, reference_value in rows])
    resampled_RC = np.stack(resampled, axis=1)
    width_C, p_C = simultaneous(difference_C, resampled_RC, null=0.0)
    return [
        Difference(*row, Estimate(value, value - width, value + width), p)
        for row, value, width, p in zip(
            rows, difference_C.tolist(), width_C.tolist(), p_C.tolist(), strict=True
        )
    ]
