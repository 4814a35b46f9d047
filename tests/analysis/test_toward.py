"""Whether a feature steers toward a word, from tables alone."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from steerlens.analysis.toward import (
    best_toward,
    lens_candidates,
    word_row,
    words_explanation,
    words_summary,
)
from steerlens.results import WORDS
from tests.support.frames import frame, steering

TOKENS = {7: " sun", 9: "Sun"}


def steered(**columns: Any) -> pd.DataFrame:
    filled = {"concept_success": [0.5, 2.0, 1.0], "concept_success_unsteered": [0.0, 1.9, 0.0]}
    scores = {"concept_score": [0.3, 0.2, 0.1], "concept": "sun"}
    return steering([4], 3, **(filled | scores | columns))


def scored(**columns: Any) -> pd.DataFrame:
    return frame([4], 3, **({"concept_score": [0.3, 0.2, 0.1]} | columns))


def row_of(found: pd.DataFrame, texts: pd.DataFrame, threshold: float | None = 0.01) -> Any:
    return word_row("sun", TOKENS, found, texts, threshold, 20)


def test_the_best_feature_adds_most_tokens_to_the_unsteered_ones() -> None:
    assert best_toward(steered())["feature"].tolist() == [2, 0, 1]
    equal = steered(concept_success=[1.0] * 3, concept_success_unsteered=[0.0] * 3)
    assert best_toward(equal)["feature"].tolist() == [0, 1, 2]
    unknown = steered(concept_success=[None, 0.1, None], concept_success_unsteered=[0.0] * 3)
    assert best_toward(unknown)["feature"].tolist() == [1, 0, 2]
    others = steered(control=[None, None, "random_direction"], together=["1", None, None])
    assert best_toward(others)["feature"].tolist() == [1]


def test_a_word_is_found_where_its_tokens_are_added() -> None:
    row = row_of(scored(), steered())
    assert row["feature"] == 2
    assert (row["concept_score"], row["concept_success"]) == (0.1, 1.0)
    assert "reason" not in row
    assert row["tokens"] == [" sun", "Sun"]
    assert row["token_ids"] == [7, 9]


@pytest.mark.parametrize(
    ("found", "texts", "reason"),
    [
        (
            scored().head(0),
            steered().head(0),
            "no feature has one of its tokens among the first 20 that",
        ),
        (scored(concept_score=[0.001, 0.002, 0.0]), steered().head(0), "toward it is 0.002, and"),
        (scored(), steered(best_factor=None, concept_success=None), "no factor may be chosen"),
        (scored(), steered(concept_success=0.0), "no more of its tokens than the unsteered"),
    ],
)
def test_the_reason_why_nothing_steers_toward_it(
    found: pd.DataFrame, texts: pd.DataFrame, reason: str
) -> None:
    row = row_of(found, texts)
    assert reason in row["reason"]
    words = words_summary(WORDS.frame([row]))
    assert words[0]["found"] is False
    (line,) = words_explanation(words)
    assert line.startswith("Nothing here steers toward 'sun': ")
    assert reason in line


def test_without_a_threshold_a_low_score_is_steered_with() -> None:
    low = scored(concept_score=[0.001, 0.002, 0.0])
    assert "reason" not in row_of(low, steered(), None)


def test_several_words_are_counted() -> None:
    rows = [row_of(scored(), steered()), {"word": "zebra", "reason": "it has no token"}]
    lines = words_explanation(words_summary(WORDS.frame(rows)))
    assert lines == [
        "Of the 2 words tried 1 have a feature that steers toward them: sun.",
        "Nothing here steers toward 'zebra': it has no token.",
    ]
    assert words_explanation([]) == []


def test_candidates_have_a_token_of_the_word_among_the_first_ones() -> None:
    ids = [[1, 2, 3], [4, 1, 5], [2, 9, 1], [6, 7, 8]]
    features = frame([0, 3], 2, logit_lens_token_ids=ids)
    tokens = {"a": [1, 5], "b": [2], "c": [8], "d": [4]}
    found = lens_candidates(features, tokens, 2)
    got = found[["word", "layer", "feature"]].to_numpy().tolist()
    keys = features[["layer", "feature"]].to_numpy().tolist()
    expected = [
        [word, *key]
        for key, lens in zip(keys, ids, strict=True)
        for word, own in tokens.items()
        if {*lens[:2]} & {*own}
    ]
    assert sorted(got) == sorted(expected)
    assert lens_candidates(features, {"c": [99]}, 3).empty
    by_lens = lens_candidates(features.assign(promoted_token_ids=ids[::-1]), tokens, 2)
    of_a = by_lens.loc[by_lens["word"] == "a", ["layer", "feature"]]
    assert of_a.to_numpy().tolist() == [[3, 0], [3, 1]]
