"""Fewer cases than a full product, in which every two values still meet."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any


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


def _met(case: tuple[Any, ...]) -> set[Any]:
    return set(combinations(enumerate(case), 2))
