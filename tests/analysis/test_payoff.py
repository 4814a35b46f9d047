"""What choosing features by a score buys, each number against a naive one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from steerlens.analysis.payoff import (
    THRESHOLDS,
    Criterion,
    Estimate,
    control_arm,
    criteria,
    payoff,
    payoff_beyond_unsteered,
    scores_of,
    threshold_curve,
)
from steerlens.errors import SteerlensError
from tests.support.steering import steering

FEW = 200


def features(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[table["control"].isna() & table["best_factor"].notna()]


def success(rows: pd.DataFrame) -> np.ndarray:
    return rows["success_20"].to_numpy(dtype=float)


def by_score(name: str, table: pd.DataFrame) -> Criterion:
    return next(one for one in criteria(table, resamples=FEW) if one.score == name)


def test_the_curve_is_the_mean_of_the_selected() -> None:
    table = steering()
    rows, all_rows = features(table), table.loc[table["control"].isna()]
    curve = threshold_curve(table, resamples=FEW)
    assert [point.threshold for point in curve] == list(THRESHOLDS)
    for point in curve:
        selected = rows.loc[rows["output_score"] >= point.threshold]
        over = all_rows.loc[all_rows["output_score"] >= point.threshold]
        assert point.selected == len(selected)
        assert point.without_factor == len(over) - len(selected)
        assert point.success is not None
        assert point.success.value == pytest.approx(success(selected).mean())
    assert curve[0].without_factor > 0


def test_threshold_0_is_unfiltered() -> None:
    table = steering()
    (point,) = threshold_curve(table, thresholds=[0], resamples=FEW)
    mean = success(features(table)).mean()
    assert point.success is not None
    assert point.success.value == pytest.approx(mean)
    assert point.random == point.shuffled == point.random_within_layers
    assert point.random == pytest.approx((mean, mean, mean))
    whole = payoff(table, threshold=0, resamples=FEW)
    assert whole is not None
    assert whole.over_unfiltered == pytest.approx((1, 1, 1))
    assert whole.over_random == pytest.approx((1, 1, 1))


def test_intervals_are_those_of_the_naive_bootstrap() -> None:
    table = steering()
    rows = features(table)
    score_N, success_N = rows["output_score"].to_numpy(dtype=float), success(rows)
    rng = np.random.default_rng(5)
    means, ratios = [], []
    for _ in range(4000):
        pick = rng.integers(0, len(rows), len(rows))
        selected = success_N[pick][score_N[pick] >= 0.01]
        means.append(selected.mean())
        ratios.append(selected.mean() / success_N[pick].mean())
    (point,) = threshold_curve(table, thresholds=[0.01], resamples=4000)
    found = payoff(table, threshold=0.01, resamples=4000)
    assert point.success is not None
    assert point.success[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=0.02)
    assert found is not None
    assert found.success[1:] == pytest.approx(point.success[1:], rel=0.02)
    assert found.over_unfiltered is not None
    expected = np.quantile(ratios, [0.025, 0.975])
    assert found.over_unfiltered[1:] == pytest.approx(expected, rel=0.02)


def test_random_subsets_and_shuffles_are_as_good_as_unfiltered() -> None:
    table = steering(n=200)
    mean = success(features(table)).mean()
    for point in threshold_curve(table, thresholds=[1e-6, 1e-3, 0.1], resamples=FEW, draws=50):
        assert point.random is not None
        assert point.shuffled is not None
        assert point.random.mean == pytest.approx(mean, abs=0.03)
        assert point.shuffled.mean == pytest.approx(mean, abs=0.03)
        assert point.random.low < point.random.mean < point.random.high


def test_as_many_of_each_layer_keep_what_the_layer_tells() -> None:
    # The score is the layer: inside one there is nothing to shuffle.
    table = steering(n=50)
    table["output_score"] = table["layer"].astype(float) / 4
    (point,) = threshold_curve(table, thresholds=[0.5], resamples=FEW)
    assert point.success is not None
    value = point.success.value
    assert point.random_within_layers == pytest.approx((value, value, value))
    assert point.shuffled is not None
    assert point.shuffled.high < value
    # And a score that is random inside its layer is no better than that.
    rows = features(steering(n=50))
    rows = rows.assign(output_score=rows["layer"] / 4 + rows["random_score"] / 10)
    (point,) = threshold_curve(rows, thresholds=[0.55], resamples=FEW, draws=200)
    naive, rng = [], np.random.default_rng(1)
    layers = [
        (layer["output_score"].to_numpy(dtype=float), success(layer))
        for _, layer in rows.groupby("layer")
    ]
    for _ in range(400):
        of_selected = [of_layer[rng.permutation(scores) >= 0.55] for scores, of_layer in layers]
        naive.append(np.concatenate(of_selected).mean())
    assert point.random_within_layers is not None
    assert point.random_within_layers.mean == pytest.approx(np.mean(naive), abs=0.01)


def test_beyond_unsteered_is_of_what_steering_adds() -> None:
    table = steering()
    assert payoff_beyond_unsteered(table) is None  # it isn't known
    assert payoff_beyond_unsteered(table.assign(success_20_unsteered=0.0)) == payoff(table)
    rng = np.random.default_rng(4)
    table = table.assign(success_20_unsteered=table["success_20"] * rng.random(len(table)))
    beyond = payoff_beyond_unsteered(table, threshold=0.1)
    assert beyond is not None
    own = features(table)
    added = success(own) - own["success_20_unsteered"].to_numpy(dtype=float)
    mask = own["output_score"].to_numpy(dtype=float) >= 0.1
    assert beyond.selected == mask.sum()
    assert beyond.over_unfiltered is not None
    assert beyond.over_unfiltered.value == pytest.approx(added[mask].mean() / added.mean())
    layer = own["layer"].to_numpy()
    as_many = np.mean([added[layer == of_layer].mean() for of_layer in layer[mask]])
    assert beyond.over_unfiltered_within_layers is not None
    assert beyond.over_unfiltered_within_layers.value == pytest.approx(added[mask].mean() / as_many)
    nothing = payoff_beyond_unsteered(table.assign(success_20_unsteered=9.0))
    assert nothing is not None
    assert nothing.over_unfiltered is nothing.over_unfiltered_within_layers is None


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    table = steering()
    shuffled = table.sample(frac=1, random_state=2)
    first = threshold_curve(table, resamples=FEW, seed=1)
    assert threshold_curve(shuffled, resamples=FEW, seed=1) == first
    assert threshold_curve(table, resamples=FEW, seed=2) != first
    assert criteria(shuffled, resamples=FEW) == criteria(table, resamples=FEW)
    assert payoff(shuffled, resamples=FEW) == payoff(table, resamples=FEW)
    assert control_arm(shuffled, resamples=FEW) == control_arm(table, resamples=FEW)


def test_a_score_that_is_success_beats_random() -> None:
    table = steering()
    table["perfect"] = table["success_20"]
    found = by_score("perfect", table)
    assert found.spearman == pytest.approx((1, 1, 1))
    assert not found.better_reversed
    for highest, lowest in zip(found.highest, found.lowest, strict=True):
        assert highest is not None
        assert lowest is not None
        assert highest.success.value > highest.random.high
        assert lowest.success.value < lowest.random.low
        for ratio in (highest.over_unfiltered, highest.over_random):
            assert ratio is not None
            assert ratio.low is not None
            assert ratio.low > 1


def test_criteria_select_the_same_number_by_every_filled_score() -> None:
    table = steering()
    rows = features(table)
    found = criteria(table, resamples=FEW)
    names = ["output_score", "input_score", "random_score", "mine"]
    assert [one.score for one in found] == names
    for one in found:
        scores = rows[one.score].to_numpy(dtype=float)
        assert one.scored == np.isfinite(scores).sum()
        for share, best in zip((0.1, 0.25, 0.5), one.highest, strict=True):
            assert best is not None
            assert best.selected == round(share * len(rows))
            assert best.unfiltered == pytest.approx(success(rows).mean())
    output = found[0]
    best = rows.sort_values("output_score", ascending=False).head(round(0.1 * len(rows)))
    assert output.highest[0] is not None
    assert output.highest[0].success.value == pytest.approx(success(best).mean())
    worst = rows.sort_values("output_score").head(round(0.1 * len(rows)))
    assert output.lowest[0] is not None
    assert output.lowest[0].success.value == pytest.approx(success(worst).mean())


def test_ties_for_the_last_places_are_any_of_them_on_average() -> None:
    table = steering()
    rows = features(table)
    found = by_score("mine", table)
    scores, rng = rows["mine"].to_numpy(dtype=int), np.random.default_rng(0)
    orders = [np.lexsort((rng.random(len(rows)), -scores)) for _ in range(2000)]
    for share, best in zip((0.1, 0.25, 0.5), found.highest, strict=True):
        size = round(share * len(rows))
        assert best is not None
        means = [success(rows)[order[:size]].mean() for order in orders]
        assert best.success.value == pytest.approx(np.mean(means), abs=0.01)


@pytest.fixture(scope="module")
def of_all() -> list[Criterion]:
    return criteria(features(steering()), resamples=3000)


@pytest.mark.parametrize("score", ["output_score", "input_score", "random_score", "mine"])
def test_rank_correlation_and_its_interval_are_scipys(score: str, of_all: list[Criterion]) -> None:
    rows = features(steering())
    rows = rows.loc[rows[score].notna()]
    x, y = rows[score].to_numpy(dtype=float), success(rows)
    found = next(criterion for criterion in of_all if criterion.score == score).spearman
    assert found is not None
    assert found.value == pytest.approx(spearmanr(x, y)[0])
    rng = np.random.default_rng(3)
    picks = (rng.integers(0, len(x), len(x)) for _ in range(1000))
    naive = [spearmanr(x[pick], y[pick])[0] for pick in picks]
    assert found[1:] == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.03)


def test_a_criterion_that_works_reversed_says_so() -> None:
    table = steering(n=60)
    assert by_score("input_score", table).better_reversed
    assert not by_score("output_score", table).better_reversed
    assert not by_score("random_score", table).better_reversed


def test_numbers_that_cannot_be_are_null() -> None:
    table = steering(success_20=0.0)
    found = payoff(table, resamples=FEW)
    assert found is not None
    assert found.success.value == 0
    assert found.over_unfiltered is None
    assert found.over_random is None
    assert by_score("output_score", table).spearman is None
    assert payoff(table, threshold=2) is None
    (point,) = threshold_curve(table, thresholds=[2], resamples=FEW)
    assert point == (2, 0, 0, 0, *[None] * 7)
    one = steering([0], 1)
    assert threshold_curve(one, thresholds=[0], resamples=FEW)[0].success == Estimate(
        float(success(one)[0]), None, None
    )
    nothing = steering(best_factor=None, success_20=None)
    assert all(point.success is None for point in threshold_curve(nothing, resamples=FEW))
    assert threshold_curve(nothing, thresholds=[0])[0].without_factor == 120
    assert payoff(nothing) is None
    assert criteria(nothing) == []
    assert control_arm(nothing) is None
    assert criteria(table.head(0)) == []


def test_a_score_of_few_features_selects_no_more_than_it_has() -> None:
    table = steering()
    table["rare"] = table["output_score"].where(table["feature"] < 5)
    found = by_score("rare", table)
    assert [best is None for best in found.highest] == [False, True, True]
    assert found.scored < 0.25 * len(features(table))


def test_scores_are_numbers_and_near_names_are_suggested() -> None:
    table = steering(note="a", flag=True)
    assert scores_of(table) == [
        "concept_score",
        "output_score",
        "output_score_delta",
        "output_score_mean",
        "input_score",
        "token_confidence_delta",
        "mean_logit",
        "lens_precision",
        "gradient",
        "outcome_correlation",
        "f1",
        "effect_stability",
        "collateral_spread",
        "collateral_spread_later",
        "activation_frequency",
        "max_activation",
        "random_score",
        "mine",
    ]
    for name in ("output_scores", "note"):
        with pytest.raises(SteerlensError, match="unknown score"):
            threshold_curve(table, name)


def test_features_stand_beside_their_random_directions() -> None:
    table = steering()
    own = table.loc[table["control"].isna()].reset_index(drop=True)
    other = table.loc[table["control"].notna()].reset_index(drop=True)
    both = own["best_factor"].notna() & other["best_factor"].notna()
    difference = success(own.loc[both]) - success(other.loc[both])
    found = control_arm(table, resamples=4000)
    assert found is not None
    assert (found.pairs, found.left_out) == (both.sum(), (~both).sum())
    assert found.features.value == pytest.approx(success(own.loc[both]).mean())
    assert found.control.value == pytest.approx(success(other.loc[both]).mean())
    assert found.difference.value == pytest.approx(difference.mean())
    rng = np.random.default_rng(1)
    means = [rng.choice(difference, len(difference)).mean() for _ in range(4000)]
    assert found.difference[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    assert control_arm(own) is None
