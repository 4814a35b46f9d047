"""SAE releases ranked, from tables in which it is known which is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.series import Series
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.results import COVERAGE, FEATURES, SAES, STEERING
from steerlens.results.folder import RunTables
from steerlens.studies.releases import answer

ASKED = StudyConfig("releases")


def release(
    name: str, success: float, layers: tuple[int, ...] = (0, 1), n: int = 40, **sae: Any
) -> Series:
    """`n` features a layer, every second one steerable; those have `success` on average."""
    rng = np.random.default_rng(len(name))
    rows = [(layer, feature) for layer in layers for feature in range(n)]
    high = np.array([feature % 2 == 0 for _, feature in rows])
    model = sae.get("model", "m")
    keys = {
        "model": [model] * len(rows),
        "sae": name,
        "hook_name": "h",
        "layer": [layer for layer, _ in rows],
        "feature": [feature for _, feature in rows],
    }
    scores = {"output_score": np.where(high, 0.5, 0.05), "input_score": np.where(high, 0.0, 0.3)}
    found = np.where(high, success + rng.normal(0, 0.1, len(rows)), 0.2)
    saes = pd.DataFrame({"model": model, "sae": name, "hook_name": "h", "layer": list(layers)})
    described = {"n_layers": 4, "d_sae": 1000, "parameters": 2_000_000} | sae
    words = pd.DataFrame({"word": ["a", "b"], "shown": [0.9, 0.2], "layer": layers[0]})
    return Series(
        f"sae={name}",
        [],
        RunTables(
            features=FEATURES.frame(keys | scores),
            steering=STEERING.frame(keys | scores | {"best_factor": 2.0, "success_20": found}),
            saes=SAES.frame(saes.assign(**described)),
            coverage=COVERAGE.frame(words.assign(model=model, sae=name, hook_name="h")),
            study=ASKED,
        ),
    )


def test_the_release_with_more_success_is_first_and_told_apart() -> None:
    found = answer([release("weak", 1.0), release("strong", 2.0)], ASKED)
    table = found.tables["releases"]
    assert table["release"].tolist() == ["sae=strong", "sae=weak"]
    assert table["success"].tolist() == pytest.approx([2, 1], abs=0.1)
    assert (table["success_low"] < table["success"]).all()
    assert "The data separate sae=strong from sae=weak" in " ".join(found.sentences)


def test_releases_that_differ_by_less_than_the_noise_are_not_told_apart() -> None:
    text = " ".join(answer([release("one", 1.0), release("two", 1.0)], ASKED).sentences)
    assert "can't separate" in text
    assert "The data separate" not in text


def test_widths_are_compared_by_feature_by_dictionary_and_by_parameter() -> None:
    narrow, wide = release("a", 1.0), release("b", 1.0, d_sae=4000, parameters=8_000_000)
    table = answer([narrow, wide], ASKED).tables["releases"].set_index("release")
    assert table["steerable_0.1"].tolist() == [0.5, 0.5]
    assert table.loc["sae=a", "steerable_per_sae"] == 500
    assert table.loc["sae=b", "steerable_per_sae"] == 2000
    assert table["steerable_per_million_parameters"].tolist() == [250, 250]


def test_a_word_is_covered_if_one_layer_shows_it_often_enough() -> None:
    table = answer([release("a", 1.0), release("b", 1.0)], ASKED).tables["releases"]
    assert table["covered"].tolist() == [0.5, 0.5]
    assert table["words"].tolist() == [2, 2]


def test_a_layer_that_not_all_have_is_left_out_and_told() -> None:
    found = answer([release("a", 1.0, (0, 1, 2)), release("b", 1.0, (1, 2))], ASKED)
    assert found.tables["releases"]["layers"].tolist() == [2, 2]
    assert any("sae=a also has layer 0" in line for line in found.sentences)
    with pytest.raises(SteerlensError, match="no layer in common"):
        answer([release("a", 1.0, (0,)), release("b", 1.0, (1,))], ASKED)


def test_different_models_are_refused_or_compared_by_depth() -> None:
    both = [release("a", 1.0, (0, 3)), release("b", 1.0, (1,), model="other", n_layers=2)]
    with pytest.raises(SteerlensError, match="study.by_depth=true"):
        answer(both, ASKED)
    found = answer(both, StudyConfig("releases", by_depth=True))
    assert found.tables["releases_by_layer"]["depth"].tolist() == [0, 1, 1]
    for draw in found.figures.values():
        assert draw().axes


def test_what_was_not_measured_is_no_column() -> None:
    bare = release("a", 1.0)
    features = RunTables(bare.tables.features, saes=bare.tables.saes, study=ASKED)
    found = answer([Series("x", [], features), Series("y", [], features)], ASKED)
    assert "success" not in found.tables["releases"]
    assert "share of the features with S_out >= 0.1" in found.sentences[0]
    for draw in found.figures.values():
        assert draw().axes


def test_one_release_is_no_comparison() -> None:
    assert "one release only" in answer([release("a", 1.0)], ASKED).sentences[0]
