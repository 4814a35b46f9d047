"""What a run says of steering: numbers of its tables, and sentences."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from steerlens.analysis.equal_share import payoff_at_equal_share, surely_better
from steerlens.analysis.factors import choose_factors
from steerlens.analysis.payoff import payoff, payoff_beyond_unsteered, threshold_curve
from steerlens.analysis.resampling import FEWEST
from steerlens.analysis.steering_summary import (
    curve_rows,
    payoff_rows,
    steering_explanation,
    steering_summary,
)
from steerlens.config.schema import ChoiceConfig
from steerlens.results.folder import RunTables
from steerlens.storage.files import json_text
from tests.support.frames import frame, generations, tables
from tests.support.steering import steering


def found(run: RunTables) -> dict[str, Any]:
    summary = steering_summary(run, (0.01, 0.1))
    assert summary is not None
    return summary


def with_texts(run: RunTables, **columns: Any) -> RunTables:
    return dataclasses.replace(run, generations=run.generations.assign(**columns))


@pytest.fixture(scope="module")
def many() -> RunTables:
    """Features and controls, some without a factor, some scores better than others."""
    return RunTables(frame(), generations(), steering())


@pytest.fixture(scope="module")
def of_many(many: RunTables) -> dict[str, Any]:
    return found(many)


def test_nothing_is_said_where_nothing_was_steered() -> None:
    assert steering_summary(RunTables(frame()), (0.01,)) is None


def test_the_numbers_are_those_of_the_parts_and_valid_json(
    many: RunTables, of_many: dict[str, Any]
) -> None:
    run, summary = many, of_many
    assert json.loads(json_text(summary)) == summary
    own = run.steering.loc[run.steering["control"].isna()]
    assert summary["features"] == len(own) == 120
    assert summary["without_factor"] == own["best_factor"].isna().sum()
    assert summary["best_factor"]["success_20"] == pytest.approx(own["success_20"].mean())
    expected = payoff(run.steering, threshold=0.1)
    assert expected is not None
    assert summary["payoff"]["0.1"]["selected"] == expected.selected
    assert summary["payoff"]["0.1"]["success"] == expected.success._asdict()
    scores = {one["score"]: one for one in summary["criteria"]["scores"]}
    assert set(scores) == {"output_score", "input_score", "random_score", "mine"}
    assert scores["input_score"]["better_reversed"]
    assert summary["control"]["pairs"] + summary["control"]["left_out"] == 120


def test_payoff_and_curve_are_tables_pooled_within_layers_and_by_layer(
    many: RunTables, of_many: dict[str, Any]
) -> None:
    run, summary = many, of_many
    rows = payoff_rows(summary)
    layers = ["all", "within layers", "0", "1", "2", "3"]
    assert [(row["threshold"], row["layer"]) for row in rows] == [
        (threshold, layer) for threshold in (0.01, 0.1) for layer in layers
    ]
    expected = payoff(run.steering, threshold=0.1)
    assert expected is not None
    assert expected.over_unfiltered is not None
    assert expected.over_unfiltered_within_layers is not None
    pooled, within, *by_layer = rows[6:]
    assert pooled["payoff"] == expected.over_unfiltered.value
    assert pooled["unfiltered"] == expected.unfiltered
    assert pooled["random"] == expected.random.mean
    assert within["payoff"] == expected.over_unfiltered_within_layers.value
    assert within["payoff_low"] == expected.over_unfiltered_within_layers.low
    assert within["unfiltered"] == expected.unfiltered_within_layers
    assert within["random"] == expected.random_within_layers.mean
    assert sum(row["selected"] for row in by_layer) == pooled["selected"] == expected.selected
    assert sum(row["features"] for row in by_layer) == pooled["features"]
    curve = {row["threshold"]: row for row in curve_rows(summary)}
    points = threshold_curve(run.steering)
    assert list(curve) == [point.threshold for point in points if point.selected]
    point = next(one for one in points if one.threshold == 0.1)
    assert point.over_unfiltered_within_layers is not None
    assert curve[0.1]["payoff_within_layers"] == point.over_unfiltered_within_layers.value
    assert curve[0.1]["payoff_within_layers"] == pytest.approx(within["payoff"])
    assert curve[0.1]["payoff"] == pytest.approx(pooled["payoff"])
    assert point.random_within_layers is not None
    assert curve[0.1]["random_within_layers"] == point.random_within_layers.mean


def test_what_steering_adds_to_unsteered_texts_is_told_beside() -> None:
    run = RunTables(frame(), generations(), steering(success_20_unsteered=0.1))
    summary = found(run)
    beyond = payoff_beyond_unsteered(run.steering, threshold=0.1)
    assert beyond is not None
    assert beyond.over_unfiltered is not None
    assert beyond.over_unfiltered_within_layers is not None
    rows = {row["layer"]: row for row in payoff_rows(summary) if row["threshold"] == 0.1}
    own, *others = rows
    assert own == "all"
    assert others[:3] == [
        *("within layers", "all, beyond unsteered", "within layers, beyond unsteered")
    ]
    pooled, within = (rows[f"{name}, beyond unsteered"] for name in ("all", "within layers"))
    assert pooled["payoff"] == beyond.over_unfiltered.value > rows["all"]["payoff"]
    assert within["payoff"] == beyond.over_unfiltered_within_layers.value
    assert within["unfiltered"] == beyond.unfiltered_within_layers
    assert re.search(
        r"Of the tokens that steering adds to the unsteered texts it is \d\.\d+ times \(.*"
        r" and within layers \d\.\d+ times \(",
        " ".join(steering_explanation(summary)),
    )
    alone = found(RunTables(frame(), generations(), steering([2], 40, success_20_unsteered=0.1)))
    assert [row["layer"] for row in payoff_rows(alone)] == ["all", "all, beyond unsteered"] * 2
    assert "within layers" not in " ".join(steering_explanation(alone))


def test_the_sentence_says_what_is_left_within_layers(of_many: dict[str, Any]) -> None:
    text = " ".join(steering_explanation(of_many))
    assert re.search(
        r"As many features of each layer have [\d.]+: within layers it is 1\.\d+ t", text
    )
    alone = found(RunTables(frame(), generations(), steering([2], 40)))
    assert "within layers" not in " ".join(steering_explanation(alone))
    assert [row["layer"] for row in payoff_rows(alone)] == ["all", "all"]
    nothing = found(RunTables(frame(), generations(), steering(range(2), success_20=0.0)))
    assert {row["payoff"] for row in payoff_rows(nothing)} == {None}
    assert "within layers" not in " ".join(steering_explanation(nothing))


def test_unsteered_means_are_over_the_features_that_have_a_factor() -> None:
    run = tables(
        best_factor=[2.0, None] * 6,
        success_20=[1.0, None] * 6,
        success_20_unsteered=[0.5, 9.0] * 6,
        perplexity_unsteered=None,
    )
    assert found(run)["unsteered"] == {"success_20": 0.5, "perplexity": None}


def test_choices_are_counted_if_it_is_known_how_they_were_made() -> None:
    run = tables()
    texts = run.generations
    control = texts.assign(control="random_direction")
    import pandas as pd

    run = dataclasses.replace(run, generations=pd.concat([texts, control]))
    assert found(run)["without_success"] == 4  # every third of 12
    unknown = found(dataclasses.replace(run, choice=None))
    assert (unknown["without_success"], unknown["tied"]) == (None, None)


def test_texts_are_counted() -> None:
    run = with_texts(
        tables(),
        near_ties=[2, 0, 1, 0] * 48,
        text=["", "a", "b", " "] * 48,
        stopped_by=["stop", "eos", "length", "stop"] * 48,
    )
    summary = found(run)
    assert summary["texts"] == 192
    assert summary["near_ties"] == {"texts": 96, "tokens": 144}
    assert summary["empty_texts"] == 48
    assert summary["stopped_by"] == {"eos": 48, "length": 48, "stop": 96}
    lines = " ".join(steering_explanation(summary))
    assert "In 96 of 192 texts rounding could have decided a token" in lines
    assert "48 of 192 texts have no character" in lines


def test_steering_that_moved_no_logit_is_told_first() -> None:
    run = tables()
    steered = (run.generations["factor"] != 0).tolist()
    for largest, moved in ((0.0, False), (1e-7, False), (1e-3, True)):
        # The unsteered texts' own divergence counts for nothing.
        kl = [largest if one else 1.0 for one in steered]
        summary = found(with_texts(run, first_step_kl=kl))
        assert summary["moved"] is moved
        told = steering_explanation(summary)[0].startswith("Steering moved no logit")
        assert told is not moved
    assert found(with_texts(run, first_step_kl=None))["moved"] is None


def test_the_sentences_say_what_selecting_buys(of_many: dict[str, Any]) -> None:
    lines = " ".join(steering_explanation(of_many))
    assert "features with S_out >= 0.1 have mean success@20 " in lines
    assert " times (95 % interval " in lines
    assert "Of 4 scores the highest output_score selects best: 27 features (25%)" in lines
    assert "Random directions of the same norm have " in lines
    assert "none may be chosen (left out of all means): 11 of 120 features." in lines


def test_features_and_random_directions_are_compared_from_the_fewest_pairs_on(
    of_many: dict[str, Any],
) -> None:
    summary = of_many
    for pairs, compared in ((FEWEST, True), (FEWEST - 1, False)):
        control = {**summary["control"], "pairs": pairs}
        lines = " ".join(steering_explanation({**summary, "control": control}))
        assert (f" over {pairs} pairs." in lines) is compared
        assert (f"{pairs} pairs can't tell them apart" in lines) is not compared


def test_the_best_of_scores_that_are_all_noise_is_not_called_best() -> None:
    table = steering(output_score=0.5, mine=1.0, input_score=None)
    lines = " ".join(steering_explanation(found(RunTables(frame(), generations(), table))))
    assert "None of 3 scores surely selects better features than as many at random" in lines
    assert "selects best" not in lines


def test_names_of_scores_are_made_safe() -> None:
    table = steering()
    nasty = table.assign(**{"a\x1b|b": table["success_20"].fillna(0)})
    summary = found(RunTables(frame(), generations(), nasty))
    lines = " ".join(steering_explanation(summary))
    assert "the highest a\\x1b|b selects best" in lines
    assert lines.isprintable()
    assert "the highest X selects best" in " ".join(steering_explanation(summary, lambda _: "X"))


def test_a_run_in_which_no_factor_may_be_chosen_can_be_told() -> None:
    summary = found(tables(best_factor=None, success_20=None, perplexity=None))
    assert summary["best_factor"]["success_20"] is None
    assert summary["payoff"] == {"0.01": None, "0.1": None}
    lines = steering_explanation(summary)
    assert not any("At the best factor" in line for line in lines)
    assert any("(left out of all means): 12 of 12 features." in line for line in lines)


def test_one_feature_is_told_without_intervals() -> None:
    run = RunTables(frame(), generations(), steering([0], 1))
    lines = steering_explanation(found(run))
    assert lines[0].startswith("1 feature was steered in ")
    assert not any("interval" in line for line in lines)


def test_means_are_also_given_without_the_features_that_no_factor_gave_success() -> None:
    steered = choose_factors(tables().generations, ChoiceConfig())
    silent = steered["feature"] % 3 == 2  # see `generations`
    assert steered["undecided"].tolist() == silent.tolist()
    assert set(steered.loc[silent, "best_factor"]) == {0.5}  # the smallest
    columns = {name: steered[name].tolist() for name in ("best_factor", "undecided", "success_20")}
    columns["output_score"] = 0.5
    summary = found(tables(**columns))
    expected = steered.loc[~silent, "success_20"].mean()
    assert summary["decided"]["success_20"] == pytest.approx(expected)
    assert summary["best_factor"]["success_20"] == pytest.approx(steered["success_20"].mean())
    text = " ".join(steering_explanation(summary))
    assert "(the smallest is taken): 4 of 12 features; the others have mean success@20" in text
    rows = {row["threshold"]: row for row in curve_rows(summary)}
    assert rows[1e-10]["undecided"] == 4
    assert rows[1e-10]["success_decided"] == pytest.approx(expected)


def test_the_summary_and_equal_shares_name_the_same_scores(of_many: dict[str, Any]) -> None:
    rows = payoff_at_equal_share(steering(), [0.25])
    named = {score["score"] for score in of_many["criteria"]["scores"] if score["surely_better"]}
    assert named == surely_better(rows, 0.25) == {"output_score"}
    assert surely_better(rows, 0.5) == set()
    assert all(row.payoff_low is None or row.payoff_low >= 0 for row in rows)
