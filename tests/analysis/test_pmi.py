from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.pmi import by_role, count, generated_pairs, pmi
from steerlens.analysis.resampling import FEWEST
from steerlens.config.schema import PmiConfig
from tests.support.frames import generations, steering

WORDS = ["Sea", " ship", " Wave", "the", "ing", ", ", "x1", "SHIP"]


def corpus(n: int = 40) -> list[str]:
    rng = np.random.default_rng(0)
    words = ["sea", "ship", "WAVE", "the", "The", "x1", "other", "seaside"]
    return [", ".join(rng.choice(words, rng.integers(1, 30))) + "." for _ in range(n)]


def tables(**columns: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features whose logit lens is `WORDS`, each beginning with another one."""
    n = 6
    order = [[(i + shift) % len(WORDS) for i in range(len(WORDS))] for shift in range(2 * n)]
    rng = np.random.default_rng(1)
    filled = {
        "logit_lens_tokens": [[WORDS[i] for i in row] for row in order],
        "logit_lens_token_ids": order,
        "input_score": rng.permutation(np.linspace(0, 1, 2 * n)),
        "output_score": rng.permutation(np.linspace(0, 0.3, 2 * n)),
    } | columns
    return steering(n=n, **filled), generations(n=n)


def naive_windows(texts: list[str], window: int) -> list[set[str]]:
    cut = []
    for text in texts:
        words = [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]
        while words:
            cut.append(set(words[:window]))
            words = words[window:]
    return cut


@pytest.mark.parametrize("window", [1, 3, 1000])
def test_counts_are_those_of_looking_at_every_window(window: int) -> None:
    pairs = {("ship", "sea"), ("sea", "ship"), ("wave", "sea"), ("never", "the"), ("the", "x1")}
    found = count(iter(corpus()), pairs, window)
    windows = naive_windows(corpus(), window)
    assert found.windows == len(windows)
    for word in {word for pair in pairs for word in pair}:
        assert found.words[word] == sum(word in one for one in windows)
    for pair in pairs:
        assert found.pairs[pair] == sum(pair[0] in one and pair[1] in one for one in windows)


def naive_pairs(features: pd.DataFrame, texts: pd.DataFrame) -> dict[tuple[Any, ...], int]:
    times: dict[tuple[Any, ...], int] = {}
    for feature in features.to_dict("records"):
        for text in texts.to_dict("records"):
            if any(feature[key] != text[key] for key in ("hook_name", "layer", "feature")):
                continue
            if text["factor"] != feature["best_factor"]:
                continue
            for token in text["token_ids"]:
                if token in feature["logit_lens_token_ids"]:
                    place = list(feature["logit_lens_token_ids"]).index(token)
                    words = (feature["logit_lens_tokens"][i].strip().lower() for i in (place, 0))
                    words = (word if word.isalnum() else None for word in words)
                    key = (feature["layer"], feature["feature"], *words)
                    times[key] = times.get(key, 0) + 1
    return times


def test_pmi_is_that_of_counting_by_hand() -> None:
    features, texts = tables()
    config = PmiConfig(window=4, min_count=3, min_together=2)
    found = pmi(features, texts, iter(corpus()), config)
    windows = naive_windows(corpus(), 4)

    def share(*words: str) -> float:
        return sum(all(word in one for word in words) for one in windows) / len(windows)

    expected: dict[tuple[Any, ...], tuple[int, float]] = {}
    dropped = dict.fromkeys(["no word", "same word", "rare word", "rarely together"], 0)
    for (layer, feature, word, top), times in naive_pairs(features, texts).items():
        if word is None or top is None:
            dropped["no word"] += 1
        elif word == top:
            dropped["same word"] += 1
        elif min(share(word), share(top)) * len(windows) < 3:
            dropped["rare word"] += 1
        elif share(word, top) * len(windows) < 2:
            dropped["rarely together"] += 1
        else:
            value = np.log2(share(word, top) / (share(word) * share(top)))
            expected[layer, feature, word, top] = (times, value)
    assert found.windows == len(windows)
    assert found.dropped == dropped
    assert len(expected) > 10
    assert len(found.pairs) == len(expected)
    for row in found.pairs.to_dict("records"):
        times, value = expected[row["layer"], row["feature"], row["token"], row["top_token"]]
        assert row["times"] == times
        assert row["pmi"] == pytest.approx(value)


def test_pairs_carry_the_role_of_their_feature() -> None:
    features, texts = tables()
    pairs = generated_pairs(features, texts).merge(
        features[["layer", "feature", "input_score", "output_score"]], on=["layer", "feature"]
    )
    assert len(set(pairs["role"])) > 2
    for row in pairs.to_dict("records"):
        high = (row["input_score"] >= 0.1, row["output_score"] >= 0.1)
        roles = {(1, 1): "hybrid", (1, 0): "input", (0, 1): "output", (0, 0): "neither"}
        assert row["role"] == roles[high]


@pytest.mark.parametrize(
    "columns",
    [
        {"input_score": None},
        {"best_factor": None},
        {"best_factor": 3.0},
        {"logit_lens_token_ids": None},
        {"control": "random_direction"},
    ],
    ids=str,
)
def test_no_pairs_are_no_error(columns: dict[str, Any]) -> None:
    features, texts = tables(**columns)
    found = pmi(features, texts, corpus())
    assert found.pairs.empty
    assert not any(found.dropped.values())
    assert by_role(found.pairs) == {}


def test_a_corpus_without_text_gives_no_pairs() -> None:
    found = pmi(*tables(), [])
    assert (len(found.pairs), found.windows) == (0, 0)


def test_without_pairs_no_text_is_read() -> None:
    texts = iter(corpus())
    assert pmi(*tables(best_factor=None), texts).windows == 0
    assert next(texts) == corpus()[0]


def test_groups_are_summarised_with_an_interval_over_features() -> None:
    features, texts = tables()
    pairs = pmi(features, texts, corpus(), PmiConfig(window=4, min_count=1, min_together=1)).pairs
    found = by_role(pairs)
    for role, statistics in found.items():
        rows = pairs.query(f"role == '{role}'")
        values = rows["pmi"].to_numpy(dtype=float)
        assert statistics["pairs"] == len(rows)
        assert statistics["features"] == len(rows[["layer", "feature"]].drop_duplicates())
        quartiles = [statistics[name] for name in ("q25", "median", "q75")]
        np.testing.assert_allclose(quartiles, np.quantile(values, [0.25, 0.5, 0.75]))
        assert statistics["mean"] == pytest.approx(values.mean())
        if statistics["features"] >= FEWEST:
            low, high = statistics["mean_interval"]
            assert low <= statistics["mean"] <= high
        else:
            assert statistics["mean_interval"] is None
    assert by_role(pairs) == found
