"""Ratings aggregated in two ways that are never mixed, and two judges compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import harmonic_mean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from steerlens.analysis.ratings import (
    AGGREGATIONS,
    OF_MEANS,
    PER_TEXT,
    agreement_of_judges,
    harmonic,
    numbers,
    weighted_kappa,
)
from steerlens.errors import SteerlensError

ASPECTS = ("concept", "instruction", "fluency")


def ratings(
    concepts: int = 12, texts: int = 10, missing: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = concepts * texts
    table = pd.DataFrame({"of": rng.permutation(np.repeat(np.arange(concepts), texts))})
    for aspect in ASPECTS:
        values = rng.choice([0, 1, 2], p=[0.2, 0.4, 0.4], size=n).astype(object)
        values[rng.random(n) < missing] = None
        table[aspect] = pd.array(values.tolist(), dtype="Int8")
    return table


def overall(table: pd.DataFrame, aspects: Sequence[str], aggregation: str) -> float:
    """The mean over concepts."""
    means: Any = numbers(table, aspects, ["of"], aggregation)["number"]
    return float(means.mean())


def naive(table: pd.DataFrame, aggregation: str) -> float:
    """One concept, text and aspect at a time, with the standard library."""
    of_concepts = []
    for _, rows in table.groupby("of"):
        lists = [[None if pd.isna(x) else int(x) for x in rows[a]] for a in ASPECTS]
        if aggregation == PER_TEXT:
            whole = [text for text in zip(*lists, strict=True) if None not in text]
            if whole:
                of_concepts.append(np.mean([harmonic_mean(text) for text in whole]))
        else:
            given = [[x for x in values if x is not None] for values in lists]
            if all(given):
                of_concepts.append(harmonic_mean([float(np.mean(values)) for values in given]))
    return float(np.mean(of_concepts))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("missing", [0.0, 0.1, 0.6])
def test_both_aggregations_are_those_of_one_text_at_a_time(
    aggregation: str, missing: float
) -> None:
    table = ratings(missing=missing)
    assert overall(table, ASPECTS, aggregation) == pytest.approx(naive(table, aggregation))


def test_the_harmonic_mean_of_means_is_never_smaller() -> None:
    for seed in range(5):
        table = ratings(missing=0.0, seed=seed)
        assert overall(table, ASPECTS, OF_MEANS) >= overall(table, ASPECTS, PER_TEXT)


def test_a_zero_makes_zero_and_a_missing_one_nothing() -> None:
    rows = np.array([[2, 2, 2], [1, 2, 2], [0, 2, 2], [0, 0, 0], [np.nan, 0, 2]])
    assert harmonic(rows)[:4] == pytest.approx([2, 1.5, 0, 0])
    assert math.isnan(harmonic(rows)[4])


def test_a_concept_without_a_rating_that_it_takes_has_no_number() -> None:
    table = pd.DataFrame({"of": ["a", "a", "b"], "fluency": [1, 2, None], "concept": [2, 1, 1]})
    for aggregation in AGGREGATIONS:
        of_concept = numbers(table, ["fluency", "concept"], ["of"], aggregation)
        assert of_concept["of"].tolist() == ["a", "b"]
        assert of_concept["number"].isna().tolist() == [False, True]


def test_concepts_can_be_layer_and_feature() -> None:
    table = ratings().assign(layer=1)
    pairs = numbers(table, ASPECTS, ["layer", "of"], PER_TEXT)
    alone = numbers(table, ASPECTS, ["of"], PER_TEXT)
    assert pairs["number"].tolist() == alone["number"].tolist()


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(SteerlensError, match="did you mean 'per_text'"):
        numbers(ratings(), ASPECTS, ["of"], "per_txt")


def pair(seed: int = 0, n: int = 200) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(seed)
    one = rng.integers(3, size=n)
    other = np.where(rng.random(n) < 0.6, one, rng.integers(3, size=n))
    return one.tolist(), other.tolist()


def test_agreement_is_that_of_scikit_learn_and_scipy() -> None:
    cohen_kappa_score = pytest.importorskip("sklearn.metrics").cohen_kappa_score
    one, other = pair()
    found = agreement_of_judges(one, other)
    expected = cohen_kappa_score(one, other, weights="quadratic", labels=[0, 1, 2])
    assert found.kappa is not None
    assert found.exact is not None
    assert found.spearman is not None
    assert found.kappa.value == pytest.approx(expected)
    assert found.exact.value == pytest.approx(np.mean(np.equal(one, other)))
    assert found.spearman.value == pytest.approx(spearmanr(one, other)[0])
    for estimate in (found.kappa, found.exact, found.spearman):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high
    assert np.sum(found.counts) == 200
    assert found.counts[2][0] == sum(a == 2 and b == 0 for a, b in zip(one, other, strict=True))


def test_missing_ratings_are_counted_for_each_judge_and_left_out_for_both() -> None:
    one, other = pair(n=50)
    whole = agreement_of_judges(one, other)
    found = agreement_of_judges([None, None, *one, 1], [1, None, *other, None])
    assert (found.texts, found.missing) == (50, (2, 2))
    assert (found.exact, found.kappa) == (whole.exact, whole.kappa)


def test_judges_that_always_say_the_same_have_no_kappa() -> None:
    found = agreement_of_judges([1] * 9, [1] * 9)
    assert found.exact is not None
    assert (found.exact.value, found.kappa, found.spearman) == (1.0, None, None)
    nothing = agreement_of_judges([None], [2])
    assert (nothing.texts, nothing.exact, nothing.kappa) == (0, None, None)
    assert math.isnan(weighted_kappa(np.zeros((3, 3))))
    perfect = agreement_of_judges([0, 1, 2, 2], [0, 1, 2, 2]).kappa
    assert perfect is not None
    assert perfect.value == 1


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(SteerlensError, match="there are 2 and 1"):
        agreement_of_judges([1, 2], [1])
    with pytest.raises(SteerlensError, match=r"1\.5 is no rating"):
        agreement_of_judges([1.5], [1])
