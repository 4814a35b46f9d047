"""What steering costs, from tables in which it is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from steerlens.analysis.capability import changed_answers, compared_answers
from steerlens.analysis.series import Series
from steerlens.config.schema import ChoiceConfig, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies.capability import answer
from steerlens.results.folder import RunTables
from tests.support.frames import capability, frame, generations, steering

RUN = RunTables(
    frame((0, 1), 6), generations(), steering(), capability=capability(), choice=ChoiceConfig()
)


def answered(run: RunTables = RUN) -> Any:
    return answer([Series("a", [], run)], StudyConfig("capability"))


def test_answers_that_changed_are_told_from_those_that_got_worse() -> None:
    before = {"item_scores": [1.0, 1.0, 0.0, 0.0, 1.0], "answers": ["0", "1", "2", "0", "3"]}
    after = {"item_scores": [1.0, 0.0, 0.0, 1.0, 0.0], "answers": ["0", "2", "3", "1", "1"]}
    counts = changed_answers(
        after["answers"], after["item_scores"], before["answers"], before["item_scores"]
    )
    assert counts == (4, 2)
    assert counts.side_effect_ratio == 0.5
    row = compared_answers(after, before)
    assert (row["items"], row["accuracy"], row["accuracy_unsteered"]) == (5, 0.4, 0.6)
    assert row["accuracy_low"] is None  # of fewer than 8 items
    same = compared_answers(before, before)
    assert (same["changed"], same["worse"], same["side_effect_ratio"]) == (0, 0, None)


def test_accuracy_falls_with_the_factor_and_controls_are_apart() -> None:
    table = answered().tables["capability"]
    own = table.loc[(table["steered"] == "feature") & (table["task"] == "one")]
    assert own["factor"].tolist() == [0.0, 0.5, 2.0, 8.0]
    assert own["features"].tolist() == [12] * 4
    answers = capability()
    at = (answers["factor"] == 8) & answers["control"].isna() & (answers["task"] == "one")
    assert own["accuracy"].iloc[-1] == pytest.approx(answers.loc[at, "accuracy"].mean())
    assert own["accuracy"].is_monotonic_decreasing
    assert (own["accuracy_low"] < own["accuracy"]).all()
    assert own["change"].iloc[0] == 0
    assert own["change_high"].iloc[-1] < 0
    control = table.loc[(table["steered"] == "random_direction") & (table["task"] == "one")]
    assert set(control["accuracy"]) == {own["accuracy"].iloc[0]}
    assert control["side_effect_ratio"].isna().all()
    assert own["success_20"].iloc[-1] > own["success_20"].iloc[0]


def test_the_interval_is_over_items_however_many_features_there_are() -> None:
    few = replace(RUN, capability=capability(n=1, layers=(0,)))
    for run in (few, RUN):
        table = answered(run).tables["capability"]
        width = (table["accuracy_high"] - table["accuracy_low"]).iloc[0]
        assert width == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 40), rel=0.15)


def test_each_feature_has_what_it_costs_at_its_best_factor() -> None:
    features = answered().tables["capability_features"]
    assert set(features["factor"]) == {2.0}
    assert len(features) == 12 * 2  # the steering table has no controls
    first = features.iloc[0]
    assert first["change"] == pytest.approx(first["accuracy"] - 0.75)


def test_the_sentences_say_accuracy_beside_success_and_what_changed() -> None:
    found = answered()
    text = " ".join(found.sentences)
    assert "Accuracy on one (40 items, 12 features): 75%" in text
    assert "got worse" in text
    assert "A random direction as strong changes it by +0.0%" in text
    axes = found.figures["capability"]().axes
    assert [panel.get_title() for panel in axes] == ["one", "two", "success@20"]


def test_no_tasks_and_the_same_features_twice_are_no_answer() -> None:
    with pytest.raises(SteerlensError, match="no tasks were evaluated"):
        answered(replace(RUN, capability=capability().iloc[:0]))
    with pytest.raises(SteerlensError, match="evaluated twice"):
        answer([Series("a", [], RUN), Series("b", [], RUN)], StudyConfig("capability"))
