"""Rank correlations of many criteria at once, against scipy's on every bootstrap sample."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from steerlens.analysis.equal_share import WITHIN_LAYERS, counts_within
from steerlens.analysis.rank_correlations import correlations_at_once

N = 60


def made(n_random: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Scores, an outcome that one of them follows, and layers; some have no score, some tie."""
    rng = np.random.default_rng(0)
    outcome_N = rng.integers(0, 5, N).astype(float)
    rare = rng.random(N)
    rare[::3] = np.nan
    scores = {"follows": outcome_N + rng.normal(0, 1, N), "against": -outcome_N + rng.random(N) * 9}
    noise = {f"noise_{i}": rng.random(N) for i in range(n_random)}
    return {**scores, "rare": rare, **noise}, outcome_N, np.arange(N) % 3


def test_values_intervals_and_p_values_are_those_of_a_loop() -> None:
    scores, outcome_N, layers_N = made()
    resamples = 200
    found = correlations_at_once(scores, outcome_N, layers_N, resamples)
    counts_RN = counts_within(layers_N, resamples, np.random.default_rng(0)).astype(int)

    def correlations(sample: np.ndarray) -> list[float]:
        of_scores = []
        for score_N in scores.values():
            picked = [i for i in sample if not np.isnan(score_N[i])]
            of_scores.append(spearmanr(score_N[picked], outcome_N[picked])[0])
        return of_scores

    values = np.array(correlations(np.arange(N)))
    resampled = np.array([correlations(np.repeat(np.arange(N), counts)) for counts in counts_RN])
    spread = resampled.std(axis=0)
    largest = [max(abs(one - values) / spread) for one in resampled]
    assert [row.score for row in found] == [*scores]
    assert [row.features for row in found] == [N, N, N - N // 3]
    for at, row in enumerate(found):
        half_width = np.quantile(largest, 0.95) * spread[at]
        expected = (values[at], max(-1, values[at] - half_width), min(1, values[at] + half_width))
        assert row.spearman == pytest.approx(expected)
        more_extreme = sum(one >= abs(values[at]) / spread[at] for one in largest)
        assert row.p == pytest.approx((1 + more_extreme) / (1 + resamples))
    by_score = {row.score: row.p for row in found}
    assert by_score["follows"] <= 0.05
    assert by_score["rare"] > 0.05


def test_within_layers_a_layers_level_says_nothing() -> None:
    """By shares of its layer that a feature is above, in a plain loop over bootstrap samples."""
    scores, outcome_N, layers_N = made()
    resamples = 100
    in_layers = partial(correlations_at_once, resamples=resamples, pooling=WITHIN_LAYERS)
    within = {row.score: row for row in in_layers(scores, outcome_N, layers_N)}
    raised = {row.score: row for row in in_layers(scores, outcome_N + 10 * layers_N, layers_N)}
    assert raised == within
    counts_RN = counts_within(layers_N, resamples, np.random.default_rng(0)).astype(int)

    def correlation(score_N: np.ndarray, sample: np.ndarray) -> float:
        has = [i for i in sample if not np.isnan(score_N[i])]
        shares: list[tuple[float, float]] = []
        for layer in set(layers_N[has]):
            members = [i for i in has if layers_N[i] == layer]
            ranks = [rankdata(x_N[members]) for x_N in (score_N, outcome_N)]
            middle = (len(members) + 1) / 2
            shares += [tuple((pair - middle) / len(members)) for pair in np.transpose(ranks)]
        a, b = np.transpose(shares)
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    for name, score_N in scores.items():
        row = within[name]
        assert row.spearman.value == pytest.approx(correlation(score_N, np.arange(N)))
        drawn = [correlation(score_N, np.repeat(np.arange(N), counts)) for counts in counts_RN]
        alone = in_layers({name: score_N}, outcome_N, layers_N)[0].spearman
        spread = np.std(drawn)
        largest = np.abs(np.array(drawn) - row.spearman.value) / spread
        assert alone.high == pytest.approx(
            min(1, row.spearman.value + np.quantile(largest, 0.95) * spread)
        )
    level = {"level": layers_N + np.arange(N) * 1e-3 * (-1) ** np.arange(N)}
    of_level = outcome_N + 10 * layers_N
    assert correlations_at_once(level, of_level, layers_N, resamples)[0].spearman.value > 0.8
    (row,) = in_layers(level, of_level, layers_N)
    assert abs(row.spearman.value) < 0.3


def test_more_criteria_widen_all_intervals() -> None:
    few, many = (correlations_at_once(*made(n))[0].spearman for n in (0, 30))
    assert few.value == many.value
    assert few.low is not None
    assert many.low is not None
    assert many.low < few.low < few.value


def test_what_is_constant_or_of_few_features_is_left_out() -> None:
    scores, outcome_N, layers_N = made()
    few = np.full(N, np.nan)
    few[:7] = np.arange(7)
    asked = {"constant": np.ones(N), "few": few, "follows": scores["follows"]}
    assert [row.score for row in correlations_at_once(asked, outcome_N, layers_N, 50)] == [
        "follows"
    ]
    assert correlations_at_once(asked, np.ones(N), layers_N, 50) == []


def test_a_criterion_in_the_outcomes_own_order_is_certain_and_widens_no_other() -> None:
    scores, outcome_N, layers_N = made()
    alone = correlations_at_once(scores, outcome_N, layers_N, 50)
    *others, own = correlations_at_once({**scores, "own": -(outcome_N**3)}, outcome_N, layers_N, 50)
    assert own.spearman == pytest.approx((-1, -1, -1))
    assert own.p == pytest.approx(1 / 51)
    assert others == alone
