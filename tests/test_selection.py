"""Which features a run looks at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerlens.config.schema import FeaturesConfig
from steerlens.errors import SteerlensError
from steerlens.selection import select_features


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
