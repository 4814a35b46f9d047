"""Two criteria together, cross-validated by feature."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.combined_criteria import combined_criteria
from steerlens.analysis.series import Series
from steerlens.config.schema import StudyConfig
from steerlens.report.studies.criteria import answer
from steerlens.results.folder import RunTables
from tests.support.frames import frame, steering

N = 200


def steered(halves: bool, seed: int = 0) -> pd.DataFrame:
    """Features of two layers. Success is the sum of two scores, one of them reversed, or noise."""
    rng = np.random.default_rng(seed)
    up, down, noise, third = rng.random((4, 2 * N))
    success = up - down + 1 if halves else noise
    scores = {
        "output_score": up,
        "input_score": down,
        "random_score": rng.random(2 * N),
        "token_confidence_delta": third,
    }
    return steering((0, 1), N, success_20=success, best_factor=2.0, **scores)


def test_a_pair_that_success_is_the_sum_of_is_surely_better() -> None:
    rows = combined_criteria(steered(halves=True))
    assert [row.pooling for row in rows] == ["pooled", "within layers"]
    for row in rows:
        assert {*row.pair.split(" (")[0].split(" + ")} == {"output_score", "input_score"}
        assert row.single.split(" (")[0] in ("output_score", "input_score")
        assert row.features == N // 2
        assert row.pair_less_single.low is not None
        assert row.pair_less_single.low > 0
        assert row.pair_payoff.value == pytest.approx(
            row.single_payoff.value + row.pair_less_single.value
        )
    # A quarter of the largest sums of two uniform numbers; the mean is 1.
    total = np.sort(np.random.default_rng(1).random((2, 100_000)).sum(axis=0))
    assert rows[0].pair_payoff.value == pytest.approx(total[75_000:].mean(), abs=0.06)


def test_noise_is_not_taken_for_a_guide_because_others_tell_what_it_keeps() -> None:
    for seed in range(3):
        for row in combined_criteria(steered(halves=False, seed=seed)):
            assert row.pair_payoff.low is not None
            assert row.pair_payoff.high is not None
            assert row.pair_payoff.low < 1.02
            assert row.pair_payoff.high > 0.98


def test_the_study_says_it_and_few_features_say_nothing() -> None:
    table = steered(halves=True)
    names = ["output_score", "input_score", "random_score", "token_confidence_delta"]
    features = frame((0, 1), N, **{name: table[name] for name in names})
    found = answer([Series("a", [], RunTables(features, steering=table))], StudyConfig())
    text = " ".join(found.sentences)
    assert "the pair is surely better (difference 0." in text
    assert list(found.tables["criteria_combined"]["pooling"]) == ["pooled", "within layers"]
    assert combined_criteria(table.head(20)) == []
    assert combined_criteria(table.assign(input_score=None, random_score=None)) == []
    assert combined_criteria(table.assign(success_20=0.0)) == []
