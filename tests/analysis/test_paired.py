"""The exact test, what it expects by chance, and the correction, against naive loops and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, permutation_test

from steerlens.analysis.arms import KEYS
from steerlens.analysis.paired import ALPHA, ENOUGH, adjusted, chance_of, compared, sign_test


def pairs_of(hits: list[list[int]], others: list[list[int]]) -> pd.DataFrame:
    """One feature for each list, one pair for each number."""
    rows = [
        {"feature": feature, "hit": bool(a), "hit_other": bool(b)}
        for feature, (one, other) in enumerate(zip(hits, others, strict=True))
        for a, b in zip(one, other, strict=True)
    ]
    return pd.DataFrame(rows).assign(model="toy", sae="toy", hook_name="h", layer=0)


def naive_p(one: list[int], other: list[int]) -> float:
    """The share of all ways to swap the sides of pairs that gives at least as large a sum."""
    less = np.array(one) - np.array(other)
    sums = [less @ np.array(signs) for signs in itertools.product([1, -1], repeat=len(less))]
    return float(np.mean([total >= less.sum() for total in sums]))


@pytest.mark.parametrize("more", [True, False])
def test_p_is_that_of_all_sign_flips(more: bool) -> None:
    rng = np.random.default_rng(0)
    ones = [rng.integers(0, 2, 8).tolist() for _ in range(12)] + [[1] * 8, [0] * 8, [1] * 8]
    others = [rng.integers(0, 2, 8).tolist() for _ in range(12)] + [[0] * 8, [0] * 8, [1] * 8]
    found = compared(pairs_of(ones, others), more)
    sides = list(zip(ones, others, strict=True))
    expected = [naive_p(*(both if more else both[::-1])) for both in sides]
    assert found["p"].tolist() == pytest.approx(expected)
    assert found["pairs"].tolist() == [8] * 15
    assert found["differ"].tolist() == [
        sum(a != b for a, b in zip(*both, strict=True)) for both in sides
    ]
    room = [sum(b == (not more) for b in other) for other in others]
    assert found["room"].tolist() == room
    assert found["share"].tolist() == pytest.approx([np.mean(one) for one in ones])
    assert found["share_other"].tolist() == pytest.approx([np.mean(one) for one in others])


def test_p_is_that_of_scipy() -> None:
    one, other = np.array([1, 1, 1, 0, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 0, 0, 1, 0])
    exact = permutation_test(
        (one, other),
        lambda a, b, axis: np.sum(a - b, axis=axis),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
    )
    (p,) = sign_test(np.array([5]), np.array([1]))
    assert p == pytest.approx(exact.pvalue)
    assert p == pytest.approx(binomtest(5, 6, alternative="greater").pvalue)


def test_chance_is_the_share_of_all_outcomes_with_a_p_that_small() -> None:
    sizes = np.arange(12)
    for n, chance in enumerate(chance_of(ALPHA, sizes)):
        outcomes = [sum(bits) for bits in itertools.product([0, 1], repeat=n)]
        p = sign_test(np.array(outcomes), n - np.array(outcomes))
        assert chance == pytest.approx(np.mean(p <= ALPHA))
    below, at = sign_test(np.array([ENOUGH - 1, ENOUGH]), np.array([0, 0]))
    assert at <= ALPHA < below


def naive_discoveries(p: np.ndarray, q: float) -> np.ndarray:
    """Benjamini and Hochberg's step-up procedure as they write it."""
    last = 0.0
    for rank, value in enumerate(sorted(p), start=1):
        if value <= rank / len(p) * q:
            last = value
    return (p <= last) & (last > 0)


@pytest.mark.parametrize("q", [0.01, 0.05, 0.2, 0.5])
def test_the_correction_is_benjamini_and_hochbergs(q: float) -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 50):
        for _ in range(20):
            p = np.where(rng.random(n) < 0.4, rng.random(n) * 0.02, rng.random(n)).round(3) + 1e-4
            assert ((adjusted(p) <= q) == naive_discoveries(p, q)).all()
    assert len(adjusted(np.array([]))) == 0


def test_keys_are_those_of_features() -> None:
    found = compared(pairs_of([[1]], [[0]]), True)
    assert list(found.index.names) == KEYS
