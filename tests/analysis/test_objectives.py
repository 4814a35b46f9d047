"""The number that a run returns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from steerlens.analysis.objectives import objective
from steerlens.analysis.summary import summarise
from steerlens.config.schema import OBJECTIVES
from steerlens.results.folder import RunTables
from tests.support.frames import frame
from tests.support.steering import steering

N = len(steering())
PERPLEXITY = {"perplexity": np.linspace(20, 90, N), "perplexity_unsteered": np.full(N, 30.0)}
TABLES = RunTables(frame(), steering=steering(**PERPLEXITY))


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return summarise(TABLES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_a_number_or_nan(name: str, summary: dict[str, Any]) -> None:
    assert isinstance(objective(name, TABLES.features, summary), float)
    empty = RunTables(frame(output_score=None, input_score=None))
    assert math.isnan(objective(name, empty.features, summarise(empty)))


def test_objectives_are_what_they_say(summary: dict[str, Any]) -> None:
    features = TABLES.features
    own = TABLES.steering.loc[TABLES.steering["control"].isna()]
    expected = {
        "mean_output_score": features["output_score"].mean(),
        "mean_input_score": features["input_score"].mean(),
        "output_features": (features["output_score"] >= 0.1).mean(),
        "success": own["success_20"].mean(),
    }
    high = own.loc[own["output_score"] >= 0.1, "success_20"].mean()
    scored = own.dropna(subset=["output_score"])["success_20"].mean()
    expected["payoff"] = high / scored
    decided = own.dropna(subset=["best_factor"])
    mean = decided.groupby("layer")["success_20"].transform("mean")
    as_many = mean.loc[decided["output_score"] >= 0.1].mean()
    expected["payoff_within_layers"] = high / as_many
    times = decided["perplexity"].mean() / decided["perplexity_unsteered"].mean()
    expected["success_per_perplexity"] = decided["success_20"].mean() / times
    for name, value in expected.items():
        assert objective(name, features, summary) == pytest.approx(float(value)), name


def test_the_summary_has_the_objective_that_was_asked_for(summary: dict[str, Any]) -> None:
    asked = summarise(dataclasses.replace(TABLES, objective="success"))
    assert asked["objective"]["name"] == "success"
    assert asked["objective"]["value"] == objective("success", TABLES.features, asked)
    assert summary["objective"] is None
