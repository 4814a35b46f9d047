"""Degeneracy: worked examples, and repetition against trying every stretch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from steerlens.engine.subject import Subject
from steerlens.steering.metrics import MetricRun, Texts, degeneracy
from steerlens.steering.metrics.degeneracy import distinct, repetition


def naive_repetition(ids: str, max_period: int) -> float:
    best = 0
    for start in range(len(ids)):
        for stop in range(start, len(ids) + 1):
            part = ids[start:stop]
            for period in range(1, max_period + 1):
                periodic = part[period:] == part[: len(part) - period]
                if periodic and len(part) >= 2 * period:
                    best = max(best, len(part))
    return best / len(ids) if ids else 0.0


def test_repetition_equals_trying_every_stretch() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = "".join(rng.choice(list("abc"), rng.integers(0, 14)))
        assert repetition(ids, 4) == naive_repetition(ids, 4)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("", 0),
        ("a", 0),
        ("ab", 0),
        ("aa", 1),
        ("abab", 1),
        ("ababa", 1),
        ("xabab", 0.8),
        ("abcdabcd", 1),
        ("abcdeabcde", 0),  # a period of 5 is no repetition
        ("abcabd", 0),  # less than two periods
    ],
)
def test_repetition(ids: str, expected: float) -> None:
    assert repetition(ids, 4) == expected


@pytest.mark.parametrize(
    ("ids", "n", "expected"),
    [("", 1, 1), ("a", 2, 1), ("aaaa", 1, 1 / 4), ("aab", 1, 2 / 3), ("abab", 2, 2 / 3)],
)
def test_distinct(ids: str, n: int, expected: float) -> None:
    assert distinct(ids, n) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("", 0),
        ("a", 0),
        ("ab", 0),
        ("abcdefg", 0),
        ("aaaaa", 1 - 1 / 4 * 1 / 3 * 1 / 2),
        ("ababab", 1 - 2 / 5 * 2 / 4 * 2 / 3),
    ],
)
def test_degeneracy(ids: str, expected: float) -> None:
    assert degeneracy.degeneracy(ids) == pytest.approx(expected)


def test_the_closing_token_does_not_count(tiny_subject: Callable[..., Subject]) -> None:
    eos = 1
    token_ids = [[5, 5], [5, 5, eos], [eos], [], [0, 0, 0]]
    texts = Texts(np.zeros(5, np.int64), [""] * 5, [""] * 5, token_ids)
    columns = degeneracy.measure(texts, tiny_subject(), degeneracy.Config(), MetricRun())
    assert columns["repetition"] == [1, 1, 0, 0, 1]
    assert columns["distinct_1"] == [0.5, 0.5, 1, 1, 0.5]
