"""How far two tables of features agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from steerlens.analysis.agreement import REPRODUCED, agreement, reproduced
from steerlens.errors import SteerlensError
from tests.support.frames import frame


def shifted(by: np.ndarray) -> pd.DataFrame:
    table = frame()
    return table.assign(output_score=table["output_score"].to_numpy(dtype=float) + by)


def test_a_table_agrees_with_itself_in_any_order() -> None:
    for one in agreement(frame(), frame().sample(frac=1, random_state=0)):
        assert one.close == 1
        assert one.largest == []
        assert one.median_difference == 0
        assert one.spearman is None or one.spearman.value == pytest.approx(1)


def test_numbers_are_those_of_scipy_and_by_hand() -> None:
    by = np.random.default_rng(0).normal(size=36) * 0.01
    (found,) = agreement(frame(), shifted(by), ["output_score"])
    assert found.features == 36
    assert found.spearman is not None
    expected = spearmanr(frame()["output_score"], shifted(by)["output_score"])[0]
    assert found.spearman.value == pytest.approx(expected)
    assert found.close == pytest.approx((np.abs(by) <= 1e-3).mean())
    assert found.median_difference == pytest.approx(np.median(np.abs(by)))
    order = np.argsort(-np.abs(by))[:5]
    assert [(one.layer, one.feature) for one in found.largest] == [(n // 12, n % 12) for n in order]
    differences = [abs(pair.value - pair.other_value) for pair in found.largest]
    assert differences == pytest.approx(np.abs(by)[order])


def test_only_features_with_the_score_in_both_count() -> None:
    one, other = frame(range(3)), frame(range(1, 4))
    other.loc[other["feature"] == 0, "output_score"] = None
    (found,) = agreement(one, other, ["output_score"])
    assert found.features == 22
    assert agreement(frame([0]), frame([1])) == []


def test_a_feature_that_is_there_twice_is_refused() -> None:
    twice = pd.concat([frame(), frame([1], 1)], ignore_index=True)
    with pytest.raises(SteerlensError, match="layer 1, feature 0 is there twice"):
        agreement(frame(), twice)


@pytest.mark.parametrize(
    ("by", "expected"),
    [(np.full(36, 5e-4), True), (np.full(36, 5e-3), False), (np.linspace(0, 1, 36), False)],
)
def test_reproduced_needs_both_rank_and_closeness(by: np.ndarray, expected: bool) -> None:
    (found,) = agreement(frame(), shifted(by), ["output_score"])
    assert reproduced(found) is expected


def test_nothing_is_said_of_few_features_or_of_other_scores() -> None:
    assert "output_rank" not in REPRODUCED
    assert [reproduced(one) for one in agreement(frame([0], 5), frame([0], 5))] == [None] * 4
