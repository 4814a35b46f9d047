"""What every criterion buys at an equal share of the features kept, corrected for their number.

Payoff is the mean success of the features that a criterion keeps over that of as many at random of
those that have its score: pooled, the highest of all layers together; within layers, the same share
of each layer. Of features without the score success may be another, which is no merit of the score.
It is counted as such and beyond that of unsteered texts, which have some tokens anyway. Intervals
are simultaneous over all criteria (single-step max-T): the largest studentised deviation of any of
them in bootstrap samples, which are drawn within layers, sets the width of all.

Dimension letters: N features, C criteria, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from steerlens.analysis.payoff import SHARES, beyond_unsteered, scores_of
from steerlens.analysis.resampling import (
    FEWEST,
    LEVEL,
    RESAMPLES,
    over_as_many_in_each_group,
    top_weights,
)
from steerlens.results import FEATURES, features_alone

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = 1e-9

POOLED, WITHIN_LAYERS = "pooled", "within layers"
AS_SUCH, BEYOND_UNSTEERED = "success", "success beyond unsteered"


class Comparison(NamedTuple):
    """What all criteria are compared in at once."""

    pooling: str
    """pooled, or within layers."""
    counted: str
    """success, or success beyond unsteered."""
    share: float


class EqualShare(NamedTuple):
    """A criterion at one share kept, beside all others at that share."""

    score: str
    pooling: str
    """pooled, or within layers."""
    counted: str
    """success, or success beyond unsteered."""
    share: float
    """Of the features that have the score."""
    features: float
    """How many are kept."""
    success: float
    """What is counted, their mean."""
    payoff: float
    """success / that of as many at random, within layers of as many of each layer."""
    payoff_low: float | None = None
    """Simultaneous interval of all criteria; null where fewer than 8 features are kept."""
    payoff_high: float | None = None
    p: float | None = None
    """Two-sided p-value of payoff = 1, corrected for the number of criteria."""
    alone_low: float | None = None
    """Interval of this criterion by itself, for a claim that was made before the others were."""
    alone_high: float | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the payoff is surely another than 1."""
        return self.p is not None and self.p <= LEVEL


def steered_features(
    steering: pd.DataFrame, success: str = "success_20"
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return the rows of features without a control and with a best factor, in a fixed order, their
    success (N,), and the number of the layer of each, from 0, (N,).
    """
    rows = features_alone(steering).dropna(subset=["best_factor", success])
    rows = rows.sort_values(list(FEATURES.keys), ignore_index=True)
    success_N = rows[success].to_numpy(dtype=float, na_value=np.nan)
    layer_keys = ["model", "sae", "hook_name", "layer"]
    return rows, success_N, rows.groupby(layer_keys, dropna=False).ngroup().to_numpy()


def payoff_at_equal_share(
    steering: pd.DataFrame,
    shares: Sequence[float] = SHARES,
    resamples: int = RESAMPLES,
    seed: int = 0,
    success: str = "success_20",
) -> list[EqualShare]:
    """Return every criterion that is filled at every share, pooled and within layers, of success
    and, where the table has it, of success beyond unsteered.

    Features are rows without a control and with a best factor; of each criterion those that have
    its score. Those that tie for the last places count in part.

    Args:
        steering: the table.
        shares: of the features that are kept.
        resamples: number of bootstrap samples.
        seed: which.
        success: the column that is success.
    """
    rows, success_N, layers_N = steered_features(steering, success)
    if rows.empty:
        return []
    scores = {
        name: rows[name].to_numpy(dtype=float, na_value=np.nan)
        for name in scores_of(rows)
        if any(rows[name].notna().tolist())
    }
    counted = {AS_SUCH: success_N}
    if (added_N := beyond_unsteered(rows, success)) is not None:
        counted[BEYOND_UNSTEERED] = added_N
    counts_RN = counts_within(layers_N, resamples, np.random.default_rng(seed))
    return [
        row
        for name, counted_N in counted.items()
        for pooling, groups_N in ((POOLED, np.zeros_like(layers_N)), (WITHIN_LAYERS, layers_N))
        for share in shares
        for row in _at_share(
            Comparison(pooling, name, share), scores, counted_N, groups_N, counts_RN
        )
    ]


def surely_better(at_shares: Sequence[EqualShare], share: float) -> set[str]:
    """Return the scores that keep features with surely more success than as many at random of all
    layers together, each held against how many scores there are.
    """
    return {
        row.score
        for row in at_shares
        if (row.pooling, row.counted, row.share) == (POOLED, AS_SUCH, share)
        and row.is_sure
        and row.payoff > 1
    }


def selection_weights(
    scores: Mapping[str, np.ndarray], share: float, groups_N: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the weights (N,) of the features that each criterion keeps, `share` of each group;
    left out where a group has too few with a score.
    """
    weights: dict[str, np.ndarray] = {}
    for name, score_N in scores.items():
        weight_N = np.zeros(len(score_N))
        for group in np.unique(groups_N):
            of_group = groups_N == group
            size = max(1, round(share * int(of_group.sum())))
            if (~np.isnan(score_N[of_group])).sum() < size:
                break
            weight_N[of_group] = top_weights(score_N[of_group], size)
        else:
            weights[name] = weight_N
    return weights


def counts_within(groups_N: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each feature is in each bootstrap sample, (R, N): as many of each group."""
    counts_RN = np.zeros((resamples, len(groups_N)))
    for group in np.unique(groups_N):
        (members,) = np.nonzero(groups_N == group)
        n = len(members)
        counts_RN[:, members] = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return counts_RN


def max_t(
    value_C: np.ndarray, resampled_RC: np.ndarray, null: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the half widths (C,) of simultaneous intervals at `LEVEL`, and p-values (C,) of
    `value = null` corrected for the number of values; NaN where a value doesn't vary.
    """
    sd_C = np.nanstd(resampled_RC, axis=0)
    sd_C = np.where(sd_C > 0, sd_C, np.nan)
    if np.isnan(sd_C).all():
        return sd_C, sd_C
    deviation_RC = np.abs(resampled_RC - value_C) / sd_C
    largest_R = np.nanmax(np.where(np.isfinite(deviation_RC), deviation_RC, 0), axis=1)
    t_C = np.abs(value_C - null) / sd_C
    p_C = (1 + (largest_R[:, None] >= t_C).sum(axis=0)) / (1 + len(largest_R))
    return np.quantile(largest_R, 1 - LEVEL) * sd_C, np.where(np.isnan(sd_C), np.nan, p_C)


def simultaneous(
    value_C: np.ndarray, resampled_RC: np.ndarray, null: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return half widths and p-values, (C,), as `max_t` does; a value that is the same in every
    sample is certain, and widens no other.
    """
    width_C = np.zeros(len(value_C))
    p_C = np.where(np.abs(value_C - null) > ROUNDING, 1 / (1 + len(resampled_RC)), 1.0)
    varies_C = np.nanstd(resampled_RC, axis=0) > ROUNDING
    if varies_C.any():
        width_C[varies_C], p_C[varies_C] = max_t(value_C[varies_C], resampled_RC[:, varies_C], null)
    return width_C, p_C


def _at_share(
    compared: Comparison,
    scores: Mapping[str, np.ndarray],
    counted_N: np.ndarray,
    groups_N: np.ndarray,
    counts_RN: np.ndarray,
) -> list[EqualShare]:
    rows: list[EqualShare] = []
    resampled: list[np.ndarray] = []
    once_1N = np.ones((1, len(counted_N)))
    for name, score_N in scores.items():
        scored_N = ~np.isnan(score_N)
        groups = groups_N[scored_N]
        (weight_N,) = selection_weights({name: score_N[scored_N]}, compared.share, groups).values()
        of_scored = (weight_N[None], counted_N[scored_N], groups)
        ((payoff,),) = over_as_many_in_each_group(*of_scored, once_1N[:, scored_N])
        if np.isfinite(payoff):
            n_features = float(weight_N.sum())
            mean = float(weight_N @ counted_N[scored_N] / n_features)
            rows.append(EqualShare(name, *compared, n_features, mean, float(payoff)))
            resampled.append(over_as_many_in_each_group(*of_scored, counts_RN[:, scored_N])[:, 0])
    enough = [index for index, row in enumerate(rows) if row.features >= FEWEST]
    if not enough:
        return rows
    payoff_C = np.array([rows[index].payoff for index in enough])
    resampled_RC = np.stack([resampled[index] for index in enough], axis=1)
    width_C, p_C = max_t(payoff_C, resampled_RC)
    least = 0 if compared.counted == AS_SUCH else -np.inf  # success is never below 0
    for at, index in enumerate(enough):
        row, column = rows[index], slice(at, at + 1)
        (width_alone,), _ = max_t(payoff_C[column], resampled_RC[:, column])
        rows[index] = row._replace(
            payoff_low=_number(max(row.payoff - width_C[at], least)),
            payoff_high=_number(row.payoff + width_C[at]),
            p=_number(p_C[at]),
            alone_low=_number(max(row.payoff - width_alone, least)),
            alone_high=_number(row.payoff + width_alone),
        )
    return rows


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
