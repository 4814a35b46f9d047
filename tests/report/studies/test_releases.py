"""SAE releases ranked, from tables in which it is known which is better."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from steerlens.analysis.series import Series
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies.releases import answer
from steerlens.results import COVERAGE, FEATURES, SAES, STEERING
from steerlens.results.folder import RunTables

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
    words = pd.DataFrame({"word": ["a", "b"], "word_share": [0.9, 0.2], "layer": layers[0]})
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
    assert all(
        low < value for low, value in zip(table["success_low"], table["success"], strict=True)
    )
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
    with pytest.raises(SteerlensError, match="by_depth=true"):
        answer(both, ASKED)
    found = answer(both, StudyConfig("releases", by_depth=True))
    assert found.tables["releases_by_layer"]["depth"].tolist() == [0, 1, 1]
    for draw in found.figures.values():
        assert draw().axes


def test_of_different_models_it_is_told_in_how_many_each_finding_shows() -> None:
    rises, flat = release("rises", 2.0, (0, 1, 2, 3)), release("flat", 2.0, (0, 3), model="other")
    for one, slope in ((rises, 0.1), (flat, 0.0)):
        table = one.tables.features
        table["output_score"] += slope * table["layer"]
        table["input_score"] = table["input_score"].rank() / 1000 - slope * table["layer"]
    answered = answer([rises, flat], StudyConfig("releases", by_depth=True))
    text = " ".join(answered.sentences)
    assert "In 1 of 2 models output scores rise with depth; rank correlation: " in text
    assert "In 1 of 2 models input scores fall with depth" in text
    assert "In 2 of 2 models success goes with the output score" in text
    assert "In 0 of 2 models success goes with the input score" in text
    assert "In 2 of 2 models filtering by S_out >= 0.1 makes steering better; times as" in text
    row = answered.tables["releases"].set_index("release").to_dict("index")["sae=rises"]
    features = rises.tables.features
    scores, layers = (features[name].to_numpy(float) for name in ("output_score", "layer"))
    naive, _ = spearmanr(scores, layers)
    assert row["output_score_with_depth"] == pytest.approx(naive)
    assert row["output_score_with_depth_low"] > 0
    assert "output_score_with_depth" not in answer([rises], ASKED).tables["releases"]


@pytest.mark.parametrize("others", [[], [("other", 3)]])
def test_one_steerable_feature_has_no_interval_but_is_shown(others: list[tuple[str, int]]) -> None:
    given = [release(name, 1.0, (0,), n) for name, n in [("one", 1), *others]]
    found = answer(given, ASKED)
    table = found.tables["releases"]
    assert not np.isnan(table["success"].to_numpy(float)).any()
    assert np.isnan(table["success_low"].to_numpy(float)).any()
    for draw in found.figures.values():
        draw()


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


def test_means_that_few_features_decide_are_told() -> None:
    spiky, even = release("spiky", 1.0), release("even", 2.0)
    table = spiky.tables.steering
    table.loc[(table["output_score"] > 0.1) & (table["feature"] < 10), "success_20"] = 20.0
    table["degeneracy"] = 0.4
    found = answer([spiky, even], ASKED)
    releases = found.tables["releases"].set_index("release")
    assert releases.index.tolist() == ["sae=spiky", "sae=even"]
    assert releases["success_median"].tolist() == pytest.approx([1, 2], abs=0.2)
    (line,) = [line for line in found.sentences if "another order" in line]
    assert line.index("sae=even") < line.index("sae=spiky") < line.index("(mean degeneracy 0.40)")
    alike = answer([release("weak", 1.0), release("strong", 2.0)], ASKED)
    assert not any("another order" in line for line in alike.sentences)


def test_words_are_compared_one_by_one() -> None:
    one, other = release("a", 2.0), release("b", 1.0)
    words = [f"w{i}" for i in range(12)]
    both = []
    for which, shown in ((one, [1.0] * 9 + [0.0] * 3), (other, [0.0] * 8 + [1.0] * 2 + [0.0] * 2)):
        rows = {"word": words, "word_share": shown, "layer": 0, "model": "m", "sae": "s"}
        table = COVERAGE.frame(pd.DataFrame(rows).assign(hook_name="h"))
        both.append(replace(which, tables=replace(which.tables, coverage=table)))
    text = " ".join(answer(both, ASKED).sentences)
    assert "Of 12 words sae=a covers 9 and sae=b 2; 8 and 1 only one of them does" in text
    assert "(exact p 0.039)" in text
