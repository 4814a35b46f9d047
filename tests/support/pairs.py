"""Fewer cases than a full product: every two values still meet, or every value is there."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairs(*values: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Choose cases of `product(*values)` so that any two values of two parameters share one.

    Greedy, and the same at every call: the next case is the first of those with the most new pairs.
    """
    cases = list(product(*values))
    missing = {pair for case in cases for pair in _met(case)}
    chosen = []
    while missing:
        case = max(cases, key=lambda case: len(missing & _met(case)))
        missing -= _met(case)
        chosen.append(case)
    return chosen


def some_slow(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Mark cases as slow but for as many as it takes to have every value of every parameter once.

    Greedy, and the same at every call: the next case is the first with the most new values.
    """
    every = list(cases)
    missing = {value for case in every for value in enumerate(case)}
    often: set[int] = set()
    while missing:
        index = max(range(len(every)), key=lambda i: len(missing & set(enumerate(every[i]))))
        missing -= set(enumerate(every[index]))
        often.add(index)
    return [
        case if index in often else pytest.param(*case, marks=pytest.mark.slow)
        for index, case in enumerate(every)
    ]


def _met(case: tuple[Any, ...]) -> set[Any]:
    return set(combinations(enumerate(case), 2))
