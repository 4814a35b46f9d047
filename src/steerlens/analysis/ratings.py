"""Ratings of texts, aggregated and compared.

A text's overall rating is the harmonic mean of its aspects: 0 where one of them is 0. There are two
ways from texts to one number, and they are never mixed:

- `per_text`: harmonic mean of each text, then the mean over a concept's texts (AxBench);
- `of_means`: mean of each aspect over a concept's texts, then their harmonic mean (the paper). It
  is never smaller.

Both then take the mean over concepts, and resample concepts for the 95 % interval: texts of one
concept are not independent. A missing rating is left out: in `per_text` with its whole text, in
`of_means` alone.

Dimension letters: N texts, A aspects, C concepts, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from steerlens.analysis.resampling import (
    Estimate,
    counts_of_resamples,
    estimate,
    spearman,
)
from steerlens.errors import SteerlensError, unknown

if TYPE_CHECKING:
    import pandas as pd

PER_TEXT, OF_MEANS = "per_text", "of_means"
AGGREGATIONS = (PER_TEXT, OF_MEANS)
RESAMPLES = 1_000
VALUES = (0, 1, 2)


class JudgesAgreement(NamedTuple):
    """How far two judges agree on the same texts, in one aspect."""

    texts: int
    """That both have rated."""
    missing: tuple[int, int]
    """Texts that the one and the other have not rated."""
    exact: Estimate | None
    """Share of equal ratings."""
    kappa: Estimate | None
    """Cohen's kappa with quadratic weights; None where both always say the same."""
    spearman: Estimate | None
    """None where one is constant."""
    counts: list[list[int]]
    """Texts by rating of the one (rows) and of the other (columns)."""


def harmonic(ratings_NA: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of every row: 0 where one is 0, NaN where one is missing; (N,)."""
    with np.errstate(divide="ignore"):
        return ratings_NA.shape[1] / (1.0 / ratings_NA).sum(axis=1)


def agreement_of_judges(
    ratings_a: Sequence[float | None], ratings_b: Sequence[float | None], seed: int = 0
) -> JudgesAgreement:
    """Return how far two judges agree in one aspect, rating the same texts in the same order.

    Texts are resampled for the intervals.

    Raises:
        SteerlensError: different numbers of texts, or something else than 0, 1, 2 and null.
    """
    if len(ratings_a) != len(ratings_b):
        raise SteerlensError(
            f"two judges can be compared on the same texts alone: there are {len(ratings_a)} and "
            f"{len(ratings_b)}."
        )
    one_N, other_N = (_ratings(values) for values in (ratings_a, ratings_b))
    both_N = ~(np.isnan(one_N) | np.isnan(other_N))
    pair_N = (3 * one_N[both_N] + other_N[both_N]).astype(int)
    counts = np.bincount(pair_N, minlength=9).reshape(3, 3)
    n, rng = len(pair_N), np.random.default_rng(seed)
    drawn_R = [
        np.bincount(pair_N, weights=counts_N, minlength=9).reshape(3, 3)
        for counts_RN in counts_of_resamples(n, RESAMPLES, rng)
        for counts_N in counts_RN
    ]
    kappa = weighted_kappa(counts)
    return JudgesAgreement(
        texts=n,
        missing=(int(np.isnan(one_N).sum()), int(np.isnan(other_N).sum())),
        exact=estimate(_exact(counts), np.array([_exact(c) for c in drawn_R]), n) if n else None,
        kappa=None
        if np.isnan(kappa)
        else estimate(kappa, np.array([weighted_kappa(c) for c in drawn_R]), n),
        spearman=spearman(one_N[both_N], other_N[both_N], RESAMPLES, rng) if n else None,
        counts=counts.tolist(),
    )


def weighted_kappa(counts: np.ndarray) -> float:
    """Return Cohen's kappa with quadratic weights, of a table of counts; NaN where chance alone
    agrees.
    """
    value = np.arange(len(counts))
    weights = (value[:, None] - value[None, :]) ** 2
    total = counts.sum()
    by_chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total if total else counts
    apart = (weights * by_chance).sum()
    return float(1 - (weights * counts).sum() / apart) if apart > 0 else np.nan


def _exact(counts: np.ndarray) -> float:
    return float(np.trace(counts) / counts.sum())


def _ratings(values: Sequence[float | None]) -> np.ndarray:
    import pandas as pd

    ratings_N = pd.Series(list(values), dtype="Float64").to_numpy(float, na_value=np.nan)
    wrong = ratings_N[~np.isnan(ratings_N) & ~np.isin(ratings_N, VALUES)]
    if len(wrong):
        raise SteerlensError(f"{wrong[0]:g} is no rating: ratings are 0, 1 and 2.")
    return ratings_N


def numbers(
    table: pd.DataFrame, aspects: Sequence[str], by: Sequence[str], aggregation: str
) -> pd.DataFrame:
    """Return the overall rating of the texts of every combination of the columns `by`: these
    columns, and `number`, NaN where a rating is missing that it takes.
    """
    import pandas as pd

    ratings_NA = table[list(aspects)].to_numpy(dtype=float, na_value=np.nan)
    which_N, names = _numbered(table[list(by)].itertuples(index=False, name=None))
    by_name = pd.DataFrame(names, columns=list(by))
    return by_name.assign(number=_numbers(ratings_NA, which_N, len(names), aggregation))


def _numbers(ratings_NA: np.ndarray, which_N: np.ndarray, n: int, aggregation: str) -> np.ndarray:
    """Return the overall rating of each of `n` groups of texts: (C,)."""
    if aggregation == PER_TEXT:
        return _means(harmonic(ratings_NA)[:, None], which_N, n)[:, 0]
    if aggregation == OF_MEANS:
        return harmonic(_means(ratings_NA, which_N, n))
    raise unknown("aggregation", aggregation, AGGREGATIONS)


def _numbered(names: Iterable[Hashable]) -> tuple[np.ndarray, list[Any]]:
    """Return the number of each name, in the order in which they come, and the names."""
    number: dict[Hashable, int] = {}
    index = [number.setdefault(name, len(number)) for name in names]
    return np.array(index, dtype=int), list(number)


def _means(values_NA: np.ndarray, which_N: np.ndarray, concepts: int) -> np.ndarray:
    """Return the mean of every concept's values that aren't NaN: (C, A), NaN where there are
    none.
    """
    has_NA = ~np.isnan(values_NA)
    sums, counts = np.zeros((2, concepts, values_NA.shape[1]))
    np.add.at(sums, which_N, np.where(has_NA, values_NA, 0.0))
    np.add.at(counts, which_N, has_NA)
    with np.errstate(invalid="ignore"):
        return sums / counts
