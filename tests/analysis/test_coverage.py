"""Which factor shows a word, how many words are covered: from tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest

from steerlens.analysis.coverage import (
    by_word,
    coverage_explanation,
    coverage_summary,
    covered,
    shows,
    words_shown,
)
from steerlens.errors import SteerlensError
from steerlens.results import COVERAGE, GENERATIONS

PROMPTS = ["d", "a", "c", "b"]
"""a and c choose the factor, b and d are reported."""


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        (" a date.", "date", True),
        (" the Dates, and", "date", True),
        (" dated", "Date", True),
        (" update", "date", False),
        (" date_time", "date", False),
        (" datedate", "date", False),
        ("", "date", False),
        (" learning a machine", "machine learning", True),
        (" the machine learns", "machine learning", False),
        (" a machine", "machine learning", False),
        (" the state art", "state of the art", True),
        (" in C++.", "c++", True),
    ],
)
def test_a_word_stands_in_a_text_as_a_whole_in_any_form(
    text: str, word: str, expected: bool
) -> None:
    assert shows(text, word) == expected


def test_what_goes_on_with_the_prompts_last_word_is_no_word() -> None:
    assert not shows("date and", "date", "Note that up")
    assert shows("date and", "date", "Note that,")
    assert shows("date and", "date", "Note that ")
    assert shows(" date", "date", "Note that")
    assert shows("date date", "date", "up")


def texts(
    at: Mapping[float, Mapping[str, tuple[str, float]]], feature: int = 7, **columns: Any
) -> pd.DataFrame:
    """The text and the perplexity of every prompt at every factor."""
    place = {"model": "toy", "sae": "toy-sae", "hook_name": "hook", "layer": 0, "feature": feature}
    rows = [
        {**place, "factor": factor, "prompt": prompt, "sample": 0, "text": text, "perplexity": ppl}
        for factor, each in at.items()
        for prompt, (text, ppl) in each.items()
    ]
    return GENERATIONS.frame(rows).assign(**columns)


def same(text: str, perplexity: float) -> dict[str, tuple[str, float]]:
    return dict.fromkeys(PROMPTS, (text, perplexity))


def row_of(
    table: pd.DataFrame, word: str = "date", budget: float = 2.0, glued: bool = False
) -> dict[str, Any]:
    (row,) = words_shown(table, {word: 7}, budget, glued).to_dict("records")
    return row


def test_the_factor_that_shows_most_on_one_half_is_measured_on_the_other() -> None:
    yes, no = (" a date", 10.0), (" a day", 12.0)
    table = texts(
        {
            0.0: {"a": no, "b": (" date", 5.0), "c": no, "d": (" day", 7.0)},
            1.0: {"a": yes, "b": yes, "c": no, "d": yes},
            2.0: {"a": yes, "b": yes, "c": yes, "d": no},
        }
    )
    row = row_of(table)
    assert (row["best_factor"], row["word_share"], row["word_share_unsteered"]) == (2.0, 0.5, 0.5)
    assert (row["perplexity"], row["perplexity_unsteered"], row["texts"]) == (11.0, 6.0, 2)
    shuffled = table.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(
        words_shown(shuffled, {"date": 7}, 2.0, False), words_shown(table, {"date": 7}, 2.0, False)
    )


def test_only_factors_within_the_budget_count() -> None:
    table = texts({0.0: same(" x", 10.0), 1.0: same(" x", 20.0), 4.0: same(" date", 20.1)})
    assert (row_of(table)["best_factor"], row_of(table)["word_share"]) == (1.0, 0.0)
    assert (row_of(table, budget=3.0)["best_factor"], row_of(table, budget=3)["word_share"]) == (
        4.0,
        1,
    )
    row = row_of(table, budget=1.5)
    assert row["feature"] == 7
    assert all(pd.isna(row[name]) for name in [*row][2:])


def test_equally_good_factors_give_the_smallest() -> None:
    date = same(" date", 10.0)
    assert row_of(texts({0.0: same(" x", 10.0), 2.0: date, 1.0: date}))["best_factor"] == 1.0
    nothing = {0.0: same(" x", 10.0), 2.0: same(" y", 9.0), 1.0: same(" z", 11.0)}
    assert row_of(texts(nothing))["best_factor"] == 1.0
    both = {0.0: same(" x", 10.0), -1.0: date, 1.0: date}
    assert row_of(texts(both))["best_factor"] == 1.0


def test_prompts_that_a_text_goes_on_with_are_looked_at() -> None:
    table = texts({0.0: same(" x", 10.0), 1.0: same("date", 10.0)})
    assert row_of(table, glued=True)["word_share"] == 0.0
    assert row_of(table, glued=False)["word_share"] == 1.0


def test_every_word_has_its_row_two_of_one_feature_too() -> None:
    seven = texts({0.0: same(" x", 10.0), 1.0: same(" date", 10.0), 2.0: same(" network", 10.0)})
    eight = texts({0.0: same(" x", 10.0), 1.0: same(" y", 10.0), 2.0: same(" date", 10.0)}, 8)
    words = {"network": 7, "zebra": 8, "date": 7}
    table = pd.concat([seven, eight], ignore_index=True)
    found = words_shown(table, words, 2.0)
    assert found["word"].tolist() == [*words]
    assert found["feature"].tolist() == [*words.values()]
    assert found["best_factor"].tolist() == [2.0, 1.0, 1.0]
    assert found["word_share"].tolist() == [1.0, 0.0, 1.0]
    assert words_shown(table, {}, 2.0).empty


def test_one_prompt_has_no_other_half() -> None:
    table = texts({0.0: {"a": (" x", 10.0)}, 1.0: {"a": (" date", 10.0)}})
    with pytest.raises(SteerlensError, match="at least two prompts"):
        row_of(table)


def coverage_of(shown: Mapping[str, Mapping[int, float | None]]) -> pd.DataFrame:
    """A table of words by layer; a word without layers has no token in any."""
    place = {"model": "toy", "sae": "toy-sae", "hook_name": "hook"}
    rows = [
        {**place, "layer": layer, "word": word, "reason": "no token"}
        if not layers
        else {
            **place,
            "layer": layer,
            "word": word,
            "tokens": [word],
            "concept_score": 0.1 * layer,
            "word_share": layers[layer],
            "reason": None if layers[layer] is not None else "too low",
        }
        for layer in (3, 4)
        for word, layers in shown.items()
    ]
    return COVERAGE.frame(rows)


TABLE = coverage_of(
    {
        "one": {3: 0.4, 4: 0.5},
        "none": {},
        "low": {3: 0.4, 4: 0.49},
        "never": {3: None, 4: None},
        "both": {3: 0.5, 4: 0.5},
        "first": {3: 1.0, 4: None},
    }
)


def test_a_word_is_covered_by_its_best_layer() -> None:
    best = by_word(TABLE)
    assert best["word"].tolist() == ["one", "none", "low", "never", "both", "first"]
    assert best["layer"].tolist() == [4, 3, 4, 4, 4, 3]
    assert covered(TABLE).tolist() == [True, False, False, False, True, True]
    assert covered(COVERAGE.frame([])).tolist() == []


def test_the_summary_counts_words_over_all_layers_and_by_layer() -> None:
    assert coverage_summary(TABLE) == {
        "words": 6,
        "formed": 5,
        "covered": 3,
        "covered_from": 0.5,
        "layers": [{"layer": 3, "covered": 2}, {"layer": 4, "covered": 2}],
        "best_layer": None,  # both have as many
    }
    (line,) = coverage_explanation(coverage_summary(TABLE))
    assert line.startswith("Of 6 words 5 can be formed by tokens, and 3 can be steered toward")
    assert "most in layer" not in line
    one = coverage_summary(TABLE.loc[(TABLE["layer"] == 3) | (TABLE["word"] == "none")])
    assert one
    assert one["best_layer"] == 3
    assert "most in layer 3: 2" in coverage_explanation(one)[0]


def test_without_words_there_is_nothing_to_say() -> None:
    assert coverage_summary(COVERAGE.frame([])) is None
    assert coverage_explanation(None) == []
    nothing = coverage_summary(coverage_of({"one": {3: None, 4: None}, "none": {}}))
    assert nothing
    assert (nothing["formed"], nothing["covered"], nothing["best_layer"]) == (1, 0, None)
    (line,) = coverage_explanation(nothing)
    assert "layer" not in line
