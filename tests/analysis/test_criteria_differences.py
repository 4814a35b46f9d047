"""Criteria beside the reference, against a plain loop over the same bootstrap samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from steerlens.analysis.criteria_differences import differences_at_once, payoff_of
from steerlens.analysis.equal_share import POOLED, WITHIN_LAYERS, counts_within
from steerlens.analysis.rank_correlations import rank_correlation
from steerlens.analysis.resampling import LEVEL

N = 80
RESAMPLES = 100


def made() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """An outcome, the reference that follows it, and scores that follow it better or not at all;
    one of them is missing for a third of the features.
    """
    rng = np.random.default_rng(0)
    outcome_N = rng.random(N)
    scores = {
        "output_score": outcome_N + rng.normal(0, 0.5, N),
        "better": outcome_N + rng.normal(0, 0.05, N),
        "nothing": rng.random(N),
    }
    scores["nothing"][::3] = np.nan
    return scores, outcome_N, np.arange(N) % 2


def spearman(score: np.ndarray, outcome: np.ndarray) -> float:
    result: Any = spearmanr(score, outcome)
    return float(result.statistic)


def highest_mean(score: np.ndarray, outcome: np.ndarray, sample: np.ndarray, n: int) -> float:
    """The mean outcome of the `n` highest of all, as often as each is in the sample."""
    kept = np.argsort(-score)[:n]
    return float(np.mean([outcome[i] for i in sample if i in kept]) / outcome[sample].mean())


@pytest.mark.parametrize("measure", ["correlation", "payoff"])
def test_differences_intervals_and_p_values_are_those_of_a_loop(measure: str) -> None:
    scores, outcome_N, layers_N = made()
    worth = rank_correlation if measure == "correlation" else payoff_of(0.25)
    counts_RN = counts_within(layers_N, RESAMPLES, np.random.default_rng(0)).astype(int)

    def difference(name: str, sample: np.ndarray) -> float:
        has = np.flatnonzero(~np.isnan(scores[name]))
        place = {feature: at for at, feature in enumerate(has)}
        picked = np.array([place[feature] for feature in sample if feature in place])
        own, reference = scores[name][has], scores["output_score"][has]
        outcome, n_highest = outcome_N[has], round(0.25 * len(has))
        if measure == "correlation":
            of = [spearman(x[picked], outcome[picked]) for x in (own, reference)]
        else:
            of = [highest_mean(x, outcome, picked, n_highest) for x in (own, reference)]
        return float(of[0] - of[1])

    names = ["better", "nothing"]
    values = np.array([difference(name, np.arange(N)) for name in names])
    drawn = np.array(
        [
            [difference(name, np.repeat(np.arange(N), counts)) for name in names]
            for counts in counts_RN
        ]
    )
    spread = drawn.std(axis=0)
    largest = np.max(np.abs(drawn - values) / spread, axis=1)
    rows = differences_at_once(worth, scores, outcome_N, layers_N, RESAMPLES)
    assert [row.score for row in rows] == names
    assert [row.features for row in rows] == [N, int((~np.isnan(scores["nothing"])).sum())]
    for row, value, width in zip(rows, values, np.quantile(largest, 0.95) * spread, strict=True):
        assert row.difference == pytest.approx((value, value - width, value + width))
        assert row.value - row.reference_value == pytest.approx(value)
    for row, value, sd in zip(rows, values, spread, strict=True):
        expected = (1 + (largest >= abs(value) / sd).sum()) / (1 + RESAMPLES)
        assert row.p == pytest.approx(expected)


def test_a_better_and_a_worse_criterion_are_told() -> None:
    scores, outcome_N, layers_N = made()
    by_score = {
        row.score: row for row in differences_at_once(rank_correlation, scores, outcome_N, layers_N)
    }
    assert by_score["better"].p <= LEVEL
    assert by_score["better"].difference.value > 0
    assert by_score["nothing"].p <= LEVEL
    assert by_score["nothing"].difference.value < 0


def test_a_score_in_the_references_order_is_the_same() -> None:
    scores, outcome_N, layers_N = made()
    scores = {"output_score": scores["output_score"], "cubed": scores["output_score"] ** 3}
    (row,) = differences_at_once(rank_correlation, scores, outcome_N, layers_N, RESAMPLES)
    assert row.difference == pytest.approx((0, 0, 0))
    assert row.p == 1


def test_a_score_that_is_better_in_every_sample_is_surely_better() -> None:
    _, outcome_N, layers_N = made()
    scores = {"output_score": -outcome_N, "own": outcome_N}
    (row,) = differences_at_once(rank_correlation, scores, outcome_N, layers_N, RESAMPLES)
    assert row.difference == pytest.approx((2, 2, 2))
    assert row.p == pytest.approx(1 / (1 + RESAMPLES))


def test_within_layers_a_layers_level_is_no_merit() -> None:
    scores, outcome_N, layers_N = made()
    levels = {"output_score": scores["output_score"], "of_layer": layers_N + scores["output_score"]}
    pooled, within = (
        differences_at_once(
            rank_correlation, levels, outcome_N + 3 * layers_N, layers_N, RESAMPLES, pooling=pooling
        )[0].difference
        for pooling in (POOLED, WITHIN_LAYERS)
    )
    assert pooled.value > 0.2
    assert within.value == pytest.approx(0)


def test_without_the_reference_or_with_few_features_there_is_nothing_to_tell() -> None:
    scores, outcome_N, layers_N = made()
    assert differences_at_once(rank_correlation, {"a": outcome_N}, outcome_N, layers_N) == []
    few = np.full(N, np.nan)
    few[:7] = np.arange(7)
    asked = {"output_score": scores["output_score"], "few": few, "constant": np.ones(N)}
    assert differences_at_once(rank_correlation, asked, outcome_N, layers_N, RESAMPLES) == []
