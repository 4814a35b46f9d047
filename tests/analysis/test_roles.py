from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.roles import (
    best_steered,
    examples,
    success_spans,
    success_tokens,
    weak_and_strong,
    with_roles,
)
from steerlens.results import GENERATIONS
from tests.support.frames import NASTY, generations, steering

SCORES = {"input": (0.9, 0.05), "output": (0.0, 0.8), "hybrid": (0.4, 0.1), "neither": (0.09, 0.0)}


def scored(scores: list[tuple[Any, Any]], **columns: Any) -> pd.DataFrame:
    score_in, score_out = zip(*scores, strict=True)
    return steering([0], len(scores), input_score=score_in, output_score=score_out, **columns)


def test_roles_are_told_by_both_scores() -> None:
    found = with_roles(scored(list(SCORES.values())))
    assert found["role"].tolist() == list(SCORES)
    np.testing.assert_allclose(found["margin"], [0.85, 0.8, 0.1, -0.09])


def test_features_without_both_scores_and_controls_have_no_role() -> None:
    table = scored(
        [(0.9, None), (None, 0.9), (0.9, 0.9), (0.9, 0.9)],
        control=[None, None, "random_direction", None],
    )
    assert with_roles(table)["feature"].tolist() == [3]


@pytest.mark.parametrize(
    ("factors", "best", "expected"),
    [
        ([8.0, 0.0, 2.0, 0.5], 2.0, [2.0, 8.0]),
        ([0.0, 0.5, 2.0, 8.0], 8.0, [0.5, 8.0]),
        ([0.0, 0.5, 2.0, 8.0], None, [0.5, 8.0]),
        ([0.0, 0.5, 8.0], 2.0, [0.5, 8.0]),
        ([0.0, 0.5], 0.5, [0.5]),
        ([0.0], None, []),
    ],
)
def test_weak_is_the_best_factor_and_strong_the_largest(
    factors: list[float], best: float | None, expected: list[float]
) -> None:
    assert weak_and_strong(factors, best) == expected


def test_the_clearest_features_come_with_their_texts_beside_the_unsteered_one() -> None:
    table = scored(
        [(0.5, 0.0), (0.9, 0.0), (0.9, 0.0), (1.0, 0.3)], best_factor=[2.0, 0.5, None, 2.0]
    )
    texts = generations(4, layers=[0])
    found = examples(table, texts, "input", n=2, prompts=2)
    assert [one.feature for one in found] == [1, 2]
    assert [one.best_factor for one in found] == [0.5, None]
    for one in found:
        assert [passage.prompt for passage in one.passages] == ["Note that", "In the"]
        for passage in one.passages:
            assert [text.factor for text in passage.continuations] == [0.0, 0.5, 8.0]
            for text in passage.continuations:
                row = texts.loc[
                    (texts["feature"] == one.feature)
                    & (texts["factor"] == text.factor)
                    & (texts["prompt"] == passage.prompt)
                ]
                assert text.text == row["text"].item()
    assert [one.feature for one in examples(table, texts, "hybrid")] == [3]
    assert examples(table, texts, "output") == []


def test_features_without_texts_and_texts_of_controls_are_passed_over() -> None:
    table = scored([(0.9, 0.0), (0.8, 0.0), (0.7, 0.0)])
    texts = generations(3, layers=[0])
    texts = texts.loc[texts["feature"] != 0]
    texts["control"] = texts["control"].mask(texts["feature"] == 1, "random_direction")
    assert [one.feature for one in examples(table, texts, "input")] == [2]
    assert examples(table, texts.assign(text=""), "input") == [], "they were left out of the file"


def test_the_first_sample_of_a_prompt_is_shown() -> None:
    rows = generations(1, layers=[0])
    later = rows.assign(sample=1, text="later")
    found = examples(scored([(0.9, 0.0)]), pd.concat([later, rows]), "input", prompts=4)
    shown = [text.text for one in found[0].passages for text in one.continuations]
    assert "later" not in shown
    assert len(shown) == 12


def test_the_best_steered_features_have_the_most_success() -> None:
    table = scored(
        [(0.5, 0.0), (None, 0.0), (0.9, 0.0), (1.0, 0.3)],
        best_factor=[2.0, 0.5, None, 2.0],
        success_20=[1.0, 2.5, None, 1.0],
    )
    found = best_steered(table, generations(4, layers=[0]), n=3, prompts=1)
    assert [(one.feature, one.success) for one in found] == [(1, 2.5), (0, 1.0), (3, 1.0)]
    factors = [[text.factor for text in one.passages[0].continuations] for one in found]
    assert factors == [[0.0, 0.5], [0.0, 2.0], [0.0, 2.0]]


def test_success_tokens_are_found_by_their_ids() -> None:
    assert success_tokens([7, 3, 9, 3], [3, 9], [" a", "b"]) == [" a", "b", " a"]
    assert success_tokens([21], list(range(30)), [str(i) for i in range(30)]) == []  # past the 20th
    assert success_tokens(None, [1], ["a"]) == []
    assert success_tokens(pd.NA, [1], ["a"]) == []


def is_whole(text: str, start: int, end: int) -> bool:
    def glued(at: int) -> bool:
        return 0 < at < len(text) and all(c.isalnum() or c == "_" for c in text[at - 1 : at + 1])

    return not glued(start) and not glued(end)


def naive(text: str, tokens: list[str]) -> tuple[int, int]:
    """How many tokens can be marked, and how many of them as whole words: all ways are tried."""
    places = [
        [None, *((i, i + len(token)) for i in range(len(text)) if text.startswith(token, i))]
        for token in tokens
    ]
    best = (0, 0)
    for way in itertools.product(*places):
        spans = [span for span in way if span is not None]
        if all(a[1] <= b[0] for a, b in itertools.pairwise(spans)):
            best = max(best, (len(spans), sum(is_whole(text, *span) for span in spans)))
    return best


def test_as_many_success_tokens_as_possible_are_marked_and_whole_words_first() -> None:
    rng = np.random.default_rng(0)
    parts = [" in", "in", "to", " to", "a", "x_", "!", " ", "\n"]
    for _ in range(150):
        text = "".join(rng.choice(parts, 6))
        tokens = [token for token in rng.choice(parts, 3).tolist() if token in text]
        spans = success_spans(text, tokens)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        in_order = iter(tokens)
        assert all(text[start:end] in in_order for start, end in spans)
        assert (len(spans), sum(is_whole(text, *span) for span in spans)) == naive(text, tokens)


def test_a_word_is_preferred_to_a_part_of_a_word() -> None:
    assert success_spans(" into the house in May", [" in"]) == ((15, 18),)
    assert success_spans(" into the inner", [" in"]) == ((0, 3),)
    assert success_spans(" steer the ste", [" ste", " the"]) == ((0, 4), (6, 10))


def test_what_is_not_in_the_text_stays_unmarked() -> None:
    assert success_spans("caf\u00e9 au lait", ["\ufffd", "", " au"]) == ((4, 7),)
    assert success_spans("", [" au"]) == ()
    assert success_spans("House", [" House"]) == ((0, 5),)  # a tokenizer that drops the space


def test_nasty_tokens_are_found_as_they_are() -> None:
    text = "".join(NASTY)
    spans = success_spans(text, NASTY)
    assert [text[slice(*span)] for span in spans] == [token for token in NASTY if token]


def test_texts_without_tokens_are_shown_unmarked() -> None:
    texts = GENERATIONS.frame(generations(1, layers=[0]).assign(token_ids=None))
    found = examples(scored([(0.9, 0.0)]), texts, "input")
    assert all(not text.successes for text in found[0].passages[0].continuations)
