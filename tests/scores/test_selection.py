"""Which features a run looks at, and which of them it steers with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.config.schema import FeaturesConfig, SelectionConfig
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES
from steerlens.scores.selection import chosen, part, select_features


def test_all_features_without_a_choice() -> None:
    assert select_features(FeaturesConfig(), 3, 10, seed=0) == list(range(10))


def test_explicit_ids_keep_their_order() -> None:
    assert select_features(FeaturesConfig(ids=[7, 2]), 3, 10, seed=0) == [7, 2]


def test_a_draw_depends_on_seed_and_layer_only() -> None:
    config = FeaturesConfig(n=5)
    draw = select_features(config, 3, 100, seed=1)
    assert draw == select_features(config, 3, 100, seed=1)
    assert draw != select_features(config, 4, 100, seed=1)
    assert draw != select_features(config, 3, 100, seed=2)
    assert len(set(draw)) == 5


def test_a_draw_is_numpys_choice_from_seed_and_layer() -> None:
    drawn = np.random.default_rng([1, 3]).choice(100, 5, replace=False)
    assert select_features(FeaturesConfig(n=5), 3, 100, seed=1) == sorted(drawn.tolist())


def test_other_counts_exchange_only_the_features_that_they_change() -> None:
    config = FeaturesConfig(n=50, min_examples=10)
    pieces_F = np.full(200, 10)
    draw = select_features(config, 3, 200, 1, pieces_F)
    pieces_F[draw[7]] = 9
    again = select_features(config, 3, 200, 1, pieces_F)
    assert set(draw) - set(again) == {draw[7]}
    assert len(again) == 50


def test_fewer_features_that_fire_than_wanted_are_refused_and_none_at_all() -> None:
    pieces_F = np.array([3, 9, 10, 9])
    every = FeaturesConfig(n=None, min_examples=10)
    assert select_features(every, 3, 4, 1, pieces_F) == [2]
    with pytest.raises(SteerlensError, match=r"^0 features of layer 3 fire in at least 11 seq"):
        select_features(FeaturesConfig(n=None, min_examples=11), 3, 4, 1, pieces_F)
    with pytest.raises(SteerlensError, match=r"^1 features .*, fewer than features\.n=2; lower"):
        select_features(FeaturesConfig(n=2, min_examples=10), 3, 4, 1, pieces_F)


def test_more_random_features_than_there_are_is_refused() -> None:
    with pytest.raises(SteerlensError, match="more than the SAE's 10"):
        select_features(FeaturesConfig(n=11), 0, 10, seed=0)


def test_a_file_gives_each_layer_its_ids(tmp_path: Path) -> None:
    file = tmp_path / "features.json"
    file.write_text(json.dumps({"3": [1, 5], "4": [2]}))
    assert select_features(FeaturesConfig(file=str(file)), 3, 10, seed=0) == [1, 5]
    with pytest.raises(SteerlensError, match="no features of layer 5"):
        select_features(FeaturesConfig(file=str(file)), 5, 10, seed=0)
    with pytest.raises(SteerlensError, match="no feature 5"):
        select_features(FeaturesConfig(file=str(file)), 3, 5, seed=0)


SCORED = FEATURES.frame(
    {
        "layer": [3, 1, 1, 1, 3, 1],
        "feature": [7, 9, 2, 5, 1, 0],
        "output_score": [0.5, 0.5, 0.1, 0.5, 0.9, None],
        "input_score": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        "output_token": list("abcdef"),
        "model": "m",
        "sae": "s",
        "hook_name": "h",
    }
)


def ids(selected: pd.DataFrame) -> list[tuple[int, int]]:
    return list(zip(selected["layer"].tolist(), selected["feature"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(3, 7), (1, 9), (1, 2), (1, 5), (3, 1), (1, 0)]),
        ({"threshold": 0.0}, [(3, 7), (1, 9), (1, 2), (1, 5), (3, 1)]),
        ({"threshold": 0.5}, [(3, 7), (1, 9), (1, 5), (3, 1)]),
        ({"threshold": 0.51}, [(3, 1)]),
        ({"threshold": -1.0, "top_n": 1}, [(3, 1)]),
        ({"top_n": 2}, [(1, 5), (3, 1)]),  # of equal ones, the lower layer, then the lower id
        ({"top_n": 3}, [(1, 9), (1, 5), (3, 1)]),
        ({"top_n": 4}, [(3, 7), (1, 9), (1, 5), (3, 1)]),
        ({"top_n": 100}, [(3, 7), (1, 9), (1, 2), (1, 5), (3, 1)]),
        ({"threshold": 0.2, "top_n": 2, "score": "input_score"}, [(3, 1), (1, 0)]),
    ],
)
def test_the_best_features_are_chosen_in_the_order_of_the_table(
    settings: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    selection = SelectionConfig(**settings)
    assert ids(chosen(SCORED, selection)) == expected
    backwards = chosen(SCORED.iloc[::-1].reset_index(drop=True), selection)
    assert set(ids(backwards)) == set(expected)


def test_a_choice_keeps_all_columns() -> None:
    assert list(chosen(SCORED, SelectionConfig(top_n=2)).columns) == list(SCORED.columns)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("output_scor", "selection.score 'output_scor'; did you mean 'output_score'"),
        ("max_activation", "unknown selection.score 'max_activation'"),  # not in this run
        ("output_token", "unknown selection.score 'output_token'; did you mean 'output_score'"),
        ("xyz", "valid: input_score, output_score."),
        ("feature", "unknown selection.score 'feature'"),
    ],
)
def test_a_score_that_was_not_computed_is_refused(score: str, message: str) -> None:
    with pytest.raises(SteerlensError) as caught:
        chosen(SCORED, SelectionConfig(score=score, top_n=1))
    assert message in str(caught.value)


def test_a_threshold_that_nothing_passes_is_refused_with_the_largest() -> None:
    with pytest.raises(SteerlensError, match=r"no feature has output_score >= 0\.95; .* is 0\.9\."):
        chosen(SCORED, SelectionConfig(threshold=0.95))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 13])
def test_parts_are_the_whole_one_after_the_other(n: int) -> None:
    whole = [5, 1, 9, 3, 2, 8, 4, 7, 6, 0]
    parts = [part(whole, (i, n)) for i in range(n)]
    assert [feature for one in parts for feature in one] == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert part(whole, None) == whole
