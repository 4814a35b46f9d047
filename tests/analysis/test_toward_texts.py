"""The texts of a feature that was steered with toward a word, from tables alone."""

from __future__ import annotations

import pandas as pd
import pytest

from steerlens.analysis.toward_texts import Toward, steered_toward
from steerlens.config.schema import ChoiceConfig
from steerlens.results.folder import RunTables
from tests.support.frames import frame, generations, steering

WORD = {"word": "sun", "token_ids": [7], "tokens": [" sun"]}
PROMPTS = ("Note that", "In the")


def toward(
    texts: pd.DataFrame, best_factor: float | None = 2.0, choice: ChoiceConfig | None = None
) -> list[Toward]:
    rows = steering(
        [4], 2, concept=["sun", "moon"], best_factor=best_factor, concept_success=[1.0, 2.0],
        concept_success_unsteered=[0.0, 0.0], concept_token=" sun",
    )  # fmt: skip
    return steered_toward(RunTables(frame([4], 2), texts, rows, choice=choice), WORD)


@pytest.fixture
def texts() -> pd.DataFrame:
    """Of two features in two layers; of the first one's both steered texts have the word."""
    rows = generations(2, (0.0, 2.0, 8.0), PROMPTS, (4, 5), token_ids=[[3, 7]] * 24)
    of_row = zip(rows["factor"], rows["prompt"], strict=True)
    rows["text"] = [f"{factor:g} sun after {prompt}" for factor, prompt in of_row]
    shown = (rows["factor"] == 2.0) | ((rows["factor"] == 0.0) & (rows["prompt"] == "In the"))
    rows["concept_success"] = shown.astype(int)
    return rows


def test_each_prompts_unsteered_text_stands_beside_that_of_the_best_factor(
    texts: pd.DataFrame,
) -> None:
    (feature,) = toward(texts)  # the other steers toward another word
    assert feature.row["feature"] == 0
    assert (feature.n_texts, feature.n_with_token, feature.n_with_token_unsteered) == (2, 2, 1)
    assert [pair.prompt for pair in feature.pairs] == list(PROMPTS)
    for pair in feature.pairs:
        assert (pair.unsteered.factor, pair.steered.factor) == (0.0, 2.0)
        assert pair.unsteered.text == f"0 sun after {pair.prompt}"
        assert pair.steered.text == f"2 sun after {pair.prompt}"
        spans = [pair.steered.text[start:end] for start, end in pair.steered.successes]
        assert spans == [" sun"]
    assert feature.writes[0] == " sun"
    assert feature.adds


def test_texts_of_prompts_that_chose_the_factor_are_not_counted(texts: pd.DataFrame) -> None:
    (feature,) = toward(texts, choice=ChoiceConfig(split=True))
    assert (feature.n_texts, feature.n_with_token, feature.n_with_token_unsteered) == (1, 1, 0)
    assert [pair.prompt for pair in feature.pairs] == ["Note that"]


def test_without_a_factor_there_are_no_pairs(texts: pd.DataFrame) -> None:
    (feature,) = toward(texts, None)
    assert (feature.n_texts, feature.n_with_token, feature.n_with_token_unsteered) == (0, 0, 1)
    assert feature.pairs == []
    assert not feature.adds


def test_a_prompt_that_lacks_one_of_the_two_texts_is_left_out(texts: pd.DataFrame) -> None:
    fewer = texts.loc[(texts["factor"] != 2.0) | (texts["prompt"] != "Note that")]
    (feature,) = toward(fewer.reset_index(drop=True))
    assert [pair.prompt for pair in feature.pairs] == ["In the"]
