"""Payoff within layers: on tables of which the answer is known, and each number the naive way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.payoff import criteria, payoff, payoff_by_layer, threshold_curve
from tests.support.steering import steering

FEW = 200


def features(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[table["control"].isna() & table["best_factor"].notna()]


def of_layers(success_by_layer: list[float], n: int = 40) -> pd.DataFrame:
    """`n` features in each layer that all have its success; scores are higher in later layers."""
    table = steering(range(len(success_by_layer)), n, best_factor=2.0)
    rng = np.random.default_rng(3)
    layer = table["layer"].to_numpy()
    score = (rng.random(len(table)) + layer) / len(success_by_layer)
    return table.assign(success_20=np.array(success_by_layer)[layer], output_score=score)


def test_a_gain_between_layers_is_none_within_them() -> None:
    table = of_layers([0.05, 0.4, 1.0])
    found = payoff(table, threshold=0.5, resamples=FEW)
    assert found is not None
    assert found.over_unfiltered is not None
    assert found.over_unfiltered.low is not None
    assert found.over_unfiltered.low > 1.3
    assert found.over_unfiltered_within_layers == pytest.approx((1, 1, 1))
    assert found.unfiltered_within_layers == pytest.approx(found.success.value)
    assert found.random_within_layers == pytest.approx([found.success.value] * 3)
    for point in threshold_curve(table, resamples=FEW):
        if point.success is not None:
            value = point.over_unfiltered_within_layers
            assert value is not None
            assert value.value == pytest.approx(1)
            assert point.random_within_layers == pytest.approx([point.success.value] * 3)


def test_a_gain_within_layers_is_the_pooled_one_where_layers_are_alike() -> None:
    table = steering(range(2), 100, best_factor=2.0)
    high = table["feature"] % 4 == 0
    table = table.assign(output_score=np.where(high, 0.9, 0.1), success_20=np.where(high, 3.0, 1.0))
    found = payoff(table, threshold=0.5, resamples=FEW)
    assert found is not None
    assert found.over_unfiltered is not None
    assert found.over_unfiltered.value == pytest.approx(3 / 1.5)
    assert found.over_unfiltered_within_layers is not None
    assert found.over_unfiltered_within_layers.value == pytest.approx(3 / 1.5)


def test_layers_are_weighted_as_among_the_selected() -> None:
    table = steering()
    rows = features(table)
    selected = rows.loc[rows["output_score"] >= 0.01]
    assert selected.groupby("layer").size().nunique() > 1
    mean: Any = rows.groupby("layer")["success_20"].mean()
    expected = float(np.mean([mean[layer] for layer in selected["layer"]]))
    found = payoff(table, threshold=0.01, resamples=FEW)
    assert found is not None
    assert found.unfiltered_within_layers == pytest.approx(expected)
    assert found.over_unfiltered_within_layers is not None
    ratio = selected["success_20"].mean() / expected
    assert found.over_unfiltered_within_layers.value == pytest.approx(ratio)
    assert found.over_unfiltered is not None
    assert found.over_unfiltered.value > found.over_unfiltered_within_layers.value


def test_random_subsets_have_as_many_features_of_each_layer() -> None:
    table = steering()
    rows = features(table)
    sizes = rows.loc[rows["output_score"] >= 0.01].groupby("layer").size()
    rng = np.random.default_rng(2)
    naive = [
        np.concatenate(
            [
                rng.permutation(rows.loc[rows["layer"] == layer, "success_20"].to_numpy(float))[:n]
                for layer, n in sizes.items()
            ]
        ).mean()
        for _ in range(500)
    ]
    found = payoff(table, threshold=0.01, draws=500, resamples=FEW)
    (point,) = threshold_curve(table, thresholds=[0.01], draws=500, resamples=FEW)
    assert found is not None
    assert point.random_within_layers is not None
    for drawn in (found.random_within_layers, point.random_within_layers):
        assert drawn.mean == pytest.approx(np.mean(naive), abs=0.01)
        assert drawn.low == pytest.approx(min(naive), abs=0.06)
        assert drawn.high == pytest.approx(max(naive), abs=0.06)


def test_the_interval_is_that_of_the_naive_bootstrap() -> None:
    table = steering()
    rows = features(table).reset_index(drop=True)
    rng = np.random.default_rng(5)
    ratios = []
    layer, success = rows["layer"].to_numpy(), rows["success_20"].to_numpy(float)
    passes = rows["output_score"].to_numpy(float) >= 0.01
    for _ in range(2000):
        drawn = rng.integers(0, len(rows), len(rows))
        mean = {one: success[drawn][layer[drawn] == one].mean() for one in range(4)}
        selected = drawn[passes[drawn]]
        as_many = np.mean([mean[one] for one in layer[selected]])
        ratios.append(success[selected].mean() / as_many)
    expected = np.quantile(ratios, [0.025, 0.975])
    found = payoff(table, threshold=0.01, resamples=4000)
    (point,) = threshold_curve(table, thresholds=[0.01], resamples=4000)
    assert found is not None
    for ratio in (found.over_unfiltered_within_layers, point.over_unfiltered_within_layers):
        assert ratio is not None
        assert ratio[1:] == pytest.approx(expected, rel=0.01)
    assert point.over_unfiltered is not None
    assert found.over_unfiltered is not None
    assert point.over_unfiltered.value == pytest.approx(found.over_unfiltered.value)
    assert point.over_unfiltered[1:] == pytest.approx(found.over_unfiltered[1:], rel=0.02)
    (alone,) = threshold_curve(table.loc[table["layer"] == 1], thresholds=[0.01], resamples=FEW)
    assert alone.over_unfiltered_within_layers == pytest.approx(alone.over_unfiltered)


def test_every_layer_has_its_own_payoff() -> None:
    table = steering()
    rows = features(table)
    listed = payoff_by_layer(table, threshold=0.01)
    assert [one.layer for one in listed] == [0, 1, 2, 3]
    for one in listed:
        of_layer = rows.loc[rows["layer"] == one.layer]
        selected = of_layer.loc[of_layer["output_score"] >= 0.01]
        assert one.features == len(of_layer)
        assert one.payoff is not None
        assert one.payoff.selected == len(selected)
        ratio = selected["success_20"].mean() / of_layer["success_20"].mean()
        assert one.payoff.over_unfiltered is not None
        assert one.payoff.over_unfiltered.value == pytest.approx(ratio)
        within = one.payoff.over_unfiltered_within_layers
        assert within is not None
        assert within == pytest.approx(one.payoff.over_unfiltered)  # the same samples
    assert [one.payoff for one in payoff_by_layer(table, threshold=2)] == [None] * 4
    assert payoff_by_layer(table.head(0)) == []


def test_two_saes_of_a_layer_count_as_two() -> None:
    table = pd.concat(
        [of_layers([success]).assign(sae=f"sae {success}") for success in (0.2, 1.0)],
        ignore_index=True,
    )
    table["output_score"] = table["success_20"] / 2 + 0.1 * table["random_score"]
    found = payoff(table, threshold=0.3, resamples=FEW)
    assert found is not None
    assert found.over_unfiltered is not None
    assert found.over_unfiltered.value > 1.5
    assert found.over_unfiltered_within_layers == pytest.approx((1, 1, 1))


def test_selections_by_any_criterion_have_a_payoff_within_layers() -> None:
    table = of_layers([0.05, 0.4, 1.0])
    for one in criteria(table, resamples=FEW):
        for found in one.highest:
            assert found is not None
            assert found.over_unfiltered_within_layers is not None
            # Those that tie count in part, so `mine`, of which there are three values, is in here.
            assert found.over_unfiltered_within_layers.value == pytest.approx(1)


def test_nothing_below_gives_no_ratio_and_few_features_no_interval() -> None:
    nothing = payoff(steering(success_20=0.0), resamples=FEW)
    assert nothing is not None
    assert nothing.over_unfiltered_within_layers is None
    assert nothing.random_within_layers == (0, 0, 0)
    few = payoff(of_layers([1.0, 2.0], n=5), threshold=0.3, resamples=FEW)
    assert few is not None
    assert few.selected < 8
    assert few.over_unfiltered_within_layers is not None
    assert few.over_unfiltered_within_layers[1:] == (None, None)
    assert few.success[1:] == (None, None)
    for point in threshold_curve(of_layers([1.0], n=7), thresholds=[0.0]):
        assert point.over_unfiltered == (1, None, None)
