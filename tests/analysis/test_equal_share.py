"""Payoff at an equal share kept against sums by hand, and its correction for many criteria."""

from __future__ import annotations

import numpy as np
import pytest

from steerlens.analysis.equal_share import (
    BEYOND_UNSTEERED,
    POOLED,
    WITHIN_LAYERS,
    counts_within,
    max_t,
    payoff_at_equal_share,
    selection_weights,
    surely_better,
)
from tests.support.frames import steering

N = 60


def table(n_random: int = 0):
    """Two layers, the second with more success; `output_score` follows success, others don't."""
    rng = np.random.default_rng(0)
    layer = np.repeat([0, 1], N)
    success = layer + rng.random(2 * N)
    noise = np.random.default_rng(1)
    others = {f"noise_{i}": noise.random(2 * N) for i in range(n_random)}
    return steering(
        (0, 1), N, success_20=success, output_score=success + rng.normal(0, 0.3, 2 * N),
        input_score=layer + rng.random(2 * N), random_score=rng.random(2 * N), **others,
    )  # fmt: skip


def test_payoffs_are_means_of_the_highest_over_means_of_as_many() -> None:
    rows = table()
    success, score = (rows[name].to_numpy(float) for name in ("success_20", "output_score"))
    layer = rows["layer"].to_numpy(int)
    by_key = {(row.score, row.pooling, row.share): row for row in payoff_at_equal_share(rows)}
    best = np.argsort(-score)[: N // 2]
    pooled = by_key["output_score", POOLED, 0.25]
    assert pooled.features == N // 2
    assert pooled.success == pytest.approx(success[best].mean())
    assert pooled.payoff == pytest.approx(success[best].mean() / success.mean())
    each = [np.flatnonzero(layer == i)[np.argsort(-score[layer == i])[: N // 4]] for i in (0, 1)]
    inside = by_key["output_score", WITHIN_LAYERS, 0.25]
    expected = np.mean([success[layer == i].mean() for i in (0, 1)])
    assert inside.payoff == pytest.approx(success[np.concatenate(each)].mean() / expected)


def test_a_score_that_only_tells_layers_buys_nothing_within_them() -> None:
    by_key = {(row.score, row.pooling, row.share): row for row in payoff_at_equal_share(table())}
    pooled, inside = (by_key["input_score", kept, 0.5] for kept in (POOLED, WITHIN_LAYERS))
    assert pooled.payoff > 1.3
    assert pooled.p is not None
    assert pooled.p <= 0.05
    assert inside.payoff == pytest.approx(1, abs=0.1)
    assert inside.p is not None
    assert inside.p > 0.05
    own = by_key["output_score", WITHIN_LAYERS, 0.5]
    assert own.p is not None
    assert own.p <= 0.05
    assert own.payoff_low is not None
    assert own.payoff_low > 1


def test_more_criteria_widen_all_intervals() -> None:
    few, many = (
        {(row.score, row.pooling, row.share): row for row in payoff_at_equal_share(table(n))}
        for n in (0, 30)
    )
    key = ("output_score", POOLED, 0.25)
    assert few[key].payoff == pytest.approx(many[key].payoff)
    low_of_few, low_of_many = few[key].payoff_low, many[key].payoff_low
    assert low_of_few is not None
    assert low_of_many is not None
    assert low_of_many < low_of_few < few[key].payoff
    alone_low = few[key].alone_low
    assert alone_low == pytest.approx(many[key].alone_low)
    assert alone_low is not None
    assert low_of_few <= alone_low


def test_max_t_holds_its_level_over_all_criteria_together() -> None:
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        value_C = rng.normal(1, 0.1, 20)
        resampled_RC = value_C + rng.normal(0, 0.1, (400, 20))
        width_C, p_C = max_t(value_C, resampled_RC)
        outside = np.abs(value_C - 1) > width_C
        assert (outside <= (p_C <= 0.06)).all()
        wrong += bool(outside.any())
    assert 1 <= wrong <= 22  # 5 % of 200 is 10; each of 20 alone would be wrong in 128


@pytest.mark.parametrize("pooling", [POOLED, WITHIN_LAYERS])
def test_intervals_p_values_and_what_is_surely_better_are_those_of_a_loop(pooling: str) -> None:
    rows, share, resamples = table(), 0.25, 200
    success, layer = rows["success_20"].to_numpy(float), rows["layer"].to_numpy(int)
    group = np.zeros_like(layer) if pooling == POOLED else layer
    names = ("output_score", "input_score", "random_score")
    picked = [
        np.concatenate(
            [
                of_group[np.argsort(-rows[name].to_numpy(float)[of_group])][: len(of_group) // 4]
                for of_group in (np.flatnonzero(group == g) for g in set(group.tolist()))
            ]
        )
        for name in names
    ]

    def payoffs(sample: np.ndarray) -> list[float]:
        """Of a sample of features, some there twice, what each score's choice among them has."""
        of_scores = []
        for chosen in picked:
            kept = [i for i in sample if i in chosen]
            means = {g: success[[i for i in sample if group[i] == g]].mean() for g in set(group)}
            of_scores.append(success[kept].mean() / np.mean([means[group[i]] for i in kept]))
        return of_scores

    counts_RN = counts_within(layer, resamples, np.random.default_rng(0))
    values = np.array(payoffs(np.arange(len(rows))))
    resampled = np.array(
        [payoffs(np.repeat(np.arange(len(rows)), n.astype(int))) for n in counts_RN]
    )
    spread = resampled.std(axis=0)
    largest = [max(abs(one - values) / spread) for one in resampled]
    found = payoff_at_equal_share(rows, [share], resamples)
    by_score = {row.score: row for row in found if row.pooling == pooling}
    better = set()
    for at, name in enumerate(names):
        row = by_score[name]
        more_extreme = sum(one >= abs(values[at] - 1) / spread[at] for one in largest)
        p = (1 + more_extreme) / (1 + resamples)
        half_width = np.quantile(largest, 0.95) * spread[at]
        assert row.payoff == pytest.approx(values[at])
        assert row.p == pytest.approx(p)
        assert row.payoff_low == pytest.approx(max(0, values[at] - half_width))
        assert row.payoff_high == pytest.approx(values[at] + half_width)
        if p <= 0.05 and values[at] > 1:
            better.add(name)
    if pooling == POOLED:
        assert surely_better(found, share) & {*names} == better == {"output_score", "input_score"}


def test_resamples_have_as_many_of_each_layer() -> None:
    groups = np.array([0, 0, 0, 1, 1])
    counts_RN = counts_within(groups, 50, np.random.default_rng(0))
    assert (counts_RN[:, :3].sum(axis=1) == 3).all()
    assert (counts_RN[:, 3:].sum(axis=1) == 2).all()
    assert len(np.unique(counts_RN, axis=0)) > 10


def test_a_criterion_with_too_few_scores_is_left_out() -> None:
    groups = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    rare = np.array([1.0, 2, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan])
    whole = np.arange(8.0)
    kept = selection_weights({"rare": rare, "whole": whole}, 0.25, groups)
    assert list(kept) == ["whole"]
    assert kept["whole"].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert list(selection_weights({"rare": rare}, 0.25, np.zeros(8, dtype=int))) == ["rare"]


def test_a_score_gains_nothing_by_being_missing_where_success_is_low() -> None:
    """Half of the features lack the score, and these have no success; of the others it is noise."""
    success = np.tile([1.0, 0.0], N)
    noise = np.where(success > 0, np.random.default_rng(2).random(2 * N), np.nan)
    rows = steering((0, 1), N, success_20=success, random_score=noise)
    of_score = [row for row in payoff_at_equal_share(rows) if row.score == "random_score"]
    assert [row.payoff for row in of_score] == [1.0] * len(of_score)
    assert [row.features for row in of_score if row.pooling == POOLED] == [6, 15, 30]


def test_tokens_that_unsteered_texts_have_anyway_are_no_merit() -> None:
    """One score is high where the unsteered texts have the tokens, the other where steering adds
    them.
    """
    rng = np.random.default_rng(3)
    unsteered, added = rng.random(2 * N), rng.random(2 * N)
    rows = steering(
        (0, 1), N, success_20=unsteered + added, success_20_unsteered=unsteered,
        input_score=unsteered, output_score=added,
    )  # fmt: skip
    beyond = {
        row.score: row
        for row in payoff_at_equal_share(rows, [0.25])
        if (row.pooling, row.counted) == (POOLED, BEYOND_UNSTEERED)
    }
    best = np.argsort(-added)[: N // 2]
    assert beyond["output_score"].payoff == pytest.approx(added[best].mean() / added.mean())
    assert beyond["output_score"].is_sure
    assert beyond["input_score"].payoff == pytest.approx(1, abs=0.15)
    assert not beyond["input_score"].is_sure


def test_fewer_than_eight_kept_have_no_interval() -> None:
    rows = payoff_at_equal_share(steering((0,), 12, success_20=np.arange(12.0)))
    assert rows
    assert all(row.payoff_low is None and row.p is None for row in rows)
    assert payoff_at_equal_share(steering((0,), 12).iloc[:0]) == []
