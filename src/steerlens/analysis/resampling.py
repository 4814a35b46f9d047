"""Means, ranks and their 95 % bootstrap intervals over features, in numbers alone.

Dimension letters: N features, C selections, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 1_000
"""Bootstrap samples unless said."""

NUMBERS_AT_ONCE = 40_000
"""Counts of features in bootstrap samples that are looked at together: what stays in the cache."""

LEVEL = 0.05
"""Of what is called sure at most this share is expected to be chance."""

FEWEST = 8
"""Of fewer items an interval or a rank correlation would say more than they know."""


class Estimate(NamedTuple):
    """A number with its interval, null where features are too few for one."""

    value: float
    low: float | None
    high: float | None


class Draws(NamedTuple):
    """Mean and range of some random draws."""

    mean: float
    low: float
    high: float


def spearman(
    score_N: np.ndarray, success_N: np.ndarray, resamples: int, rng: np.random.Generator
) -> Estimate | None:
    """Return Spearman's correlation over the features that have the score.

    None where one of both is constant, or these are fewer than `FEWEST`.
    """
    has = ~np.isnan(score_N)
    if has.sum() < FEWEST:
        return None
    a_N, b_N = (np.unique(values[has], return_inverse=True)[1] for values in (score_N, success_N))
    n = int(has.sum())
    (value,) = rank_correlations(a_N, b_N, np.ones((1, n)))
    if np.isnan(value):
        return None
    resampled = [
        rank_correlations(a_N, b_N, counts_RN)
        for counts_RN in counts_of_resamples(n, resamples, rng)
    ]
    return estimate(value, np.concatenate(resampled), n)


def p_of_rank_correlation(score_N: np.ndarray, success_N: np.ndarray) -> float | None:
    """Return the two-sided p-value of `spearman`, from Student's t; None where there is no
    correlation.
    """
    from scipy.stats import spearmanr

    has = ~np.isnan(score_N)
    both = (score_N[has], success_N[has])
    if has.sum() < FEWEST or any(len(np.unique(values)) < 2 for values in both):
        return None
    result: Any = spearmanr(*both)
    return float(result.pvalue)


def rank_correlations(
    a_N: np.ndarray, b_N: np.ndarray, counts_RN: np.ndarray, groups_N: np.ndarray | None = None
) -> np.ndarray:
    """Return, as (R,), the correlation of the mean ranks of features that are there `counts_RN`
    times each.

    With `groups_N` ranks are within each group, as shares of it: a group's level tells nothing.
    `a_N` and `b_N` are places of values in their order, from 0. NaN where one is constant.
    """
    if groups_N is None:
        groups_N = np.zeros_like(a_N)
    products_3R = np.zeros((3, len(counts_RN)))
    for group in np.unique(groups_N):
        of_group = groups_N == group
        counts_Rn = counts_RN[:, of_group]
        n_R = np.maximum(counts_Rn.sum(axis=1), 1)
        products_3R += _rank_products(a_N[of_group], b_N[of_group], counts_Rn) / n_R**2
    together_R, a_R, b_R = products_3R
    with np.errstate(divide="ignore", invalid="ignore"):
        return together_R / np.sqrt(a_R * b_R)


def _rank_products(a_N: np.ndarray, b_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Return, as (3, R), the sums of products of centred ranks: a with b, a with a, b with b."""
    middle_R1 = (counts_RN.sum(axis=1, keepdims=True) + 1) / 2
    centred = []
    for code_N in (a_N, b_N):
        size = (len(counts_RN), int(code_N.max()) + 1)
        code_RN = code_N + size[1] * np.arange(size[0])[:, None]
        tied_RK = np.bincount(
            code_RN.ravel(), weights=counts_RN.ravel(), minlength=size[0] * size[1]
        ).reshape(size)
        rank_RK = np.cumsum(tied_RK, axis=1) - (tied_RK - 1) / 2
        centred.append((rank_RK - middle_R1)[:, code_N])
    a, b = centred
    counted_a, counted_b = counts_RN * a, counts_RN * b
    pairs = ((counted_a, b), (counted_a, a), (counted_b, b))
    return np.stack([np.einsum("rn,rn->r", x, y) for x, y in pairs])


def top_weights(score_N: np.ndarray, size: int) -> np.ndarray:
    """Return weights that select the `size` largest: 1 above the last place, its share for each
    of those that tie for it, 0 below and for NaN.
    """
    last = -np.sort(-score_N)[size - 1]  # NaN is sorted last
    above, tied = score_N > last, score_N == last
    return above + tied * (size - above.sum()) / tied.sum()


def counts_of_resamples(n: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each of `n` features is in each bootstrap sample, some samples at a time:
    (R, N).
    """
    at_once = NUMBERS_AT_ONCE // max(n, 1) + 1
    for start in range(0, resamples if n else 0, at_once):
        size = min(at_once, resamples - start)
        drawn_RN = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn_RN.ravel(), minlength=size * n).reshape(size, n)


def weighted_means(weights_CN: np.ndarray, success_N: np.ndarray) -> np.ndarray:
    """Return the weighted mean success of every selection, NaN for an empty one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights_CN @ success_N) / weights_CN.sum(axis=1)


def resampled_means(
    weights_CN: np.ndarray, success_N: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the same means in every bootstrap sample of the features, [C, R]."""
    # Numerators and denominators in one product; in floats, because BLAS has no integers.
    both = np.concatenate([weights_CN * success_N, weights_CN]).astype(float)
    sums = [
        counts_RN.astype(float) @ both.T
        for counts_RN in counts_of_resamples(len(success_N), resamples, rng)
    ]
    above, below = np.split(np.concatenate([np.empty((0, len(both))), *sums]).T, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below


def over_as_many_in_each_group(
    weights_CN: np.ndarray, success_N: np.ndarray, groups_N: np.ndarray, counts_RN: np.ndarray
) -> np.ndarray:
    """Return, as (R, C), the mean success of every selection over that of as many features of each
    group.

    The latter is the mean over all ways to draw them: each feature selected stands for the mean of
    its group. In sample R features are there `counts_RN` times. NaN where a selection is empty, or
    the mean below isn't above 0: of features that add nothing nothing is a multiple.
    """
    in_group_NG = np.eye(groups_N.max(initial=-1) + 1)[groups_N]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_RG = (counts_RN * success_N) @ in_group_NG / (counts_RN @ in_group_NG)
        mean_RN = np.nan_to_num(mean_RG)[:, groups_N]
        below_RC = (counts_RN * mean_RN) @ weights_CN.T
        return (counts_RN * success_N) @ weights_CN.T / np.where(below_RC > 0, below_RC, np.nan)


def estimates_over_groups(
    weights_CN: np.ndarray,
    success_N: np.ndarray,
    groups_N: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
) -> list[Estimate | None]:
    """Return `over_as_many_in_each_group` of every selection, with its interval; None where it's
    NaN.
    """
    n = len(success_N)
    data = (np.asarray(weights_CN, dtype=float), success_N, groups_N)
    (value_C,) = over_as_many_in_each_group(*data, np.ones((1, n)))
    resampled = [
        over_as_many_in_each_group(*data, counts_RN.astype(float))
        for counts_RN in counts_of_resamples(n, resamples, rng)
    ]
    resampled_RC = np.concatenate([np.empty((0, len(value_C))), *resampled])
    return [
        estimate(value, resampled_R, selected) if np.isfinite(value) else None
        for value, resampled_R, selected in zip(
            value_C, resampled_RC.T, data[0].sum(axis=1), strict=True
        )
    ]


def estimate(value: float, resampled_R: np.ndarray, features: float) -> Estimate:
    """Return the value with its interval; too few features have none, however often they are
    drawn.
    """
    finite = resampled_R[np.isfinite(resampled_R)]
    if features < FEWEST or not len(finite):
        return Estimate(float(value), None, None)
    low, high = np.quantile(finite, [0.025, 0.975]).tolist()
    return Estimate(float(value), low, high)


def adjusted_p_values(p_values: Sequence[float] | np.ndarray | pd.Series) -> np.ndarray:
    """Return p-values corrected for their number, (N,), as Benjamini and Hochberg (1995) do.

    The same as `scipy.stats.false_discovery_control`, for which every run would import scipy.stats:
    a second, a fifth of all that figures and report take.
    """
    p_N = np.asarray(p_values, dtype=np.float64)
    order_N = np.argsort(p_N)[::-1]
    of_rank_N = p_N[order_N] * (len(p_N) / np.arange(len(p_N), 0, -1))
    adjusted_N = np.empty_like(p_N)
    adjusted_N[order_N] = np.minimum.accumulate(of_rank_N)
    return adjusted_N.clip(max=1)


def sure(p_values: Sequence[float | None], level: float = LEVEL) -> list[bool]:
    """Return whether each is a discovery among all of them (Benjamini and Hochberg); None is none.

    Of many scores some look good by chance, so that each alone must not be held against the level.
    """
    adjusted = iter(adjusted_p_values([p for p in p_values if p is not None]))
    return [p is not None and next(adjusted) <= level for p in p_values]


def mean_estimate(
    values_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """Return the mean of `values_N` (numbers, or yes and no) with its interval; None of nothing."""
    n = len(values_N)
    if not n:
        return None
    return estimate(float(np.mean(values_N)), _resampled_mean(values_N, resamples, seed), n)


def difference(
    one_N: np.ndarray, other_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """Return the mean of one less mean of the other, drawn independently; None if one of them is
    empty.
    """
    if not (len(one_N) and len(other_N)):
        return None
    resampled = [
        _resampled_mean(values_N, resamples, seed + index)
        for index, values_N in enumerate((one_N, other_N))
    ]
    value = float(np.mean(one_N) - np.mean(other_N))
    return estimate(value, resampled[0] - resampled[1], min(len(one_N), len(other_N)))


def _resampled_mean(values_N: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return, as (R,), the mean of every bootstrap sample."""
    rng, n = np.random.default_rng(seed), len(values_N)
    value, count = np.unique(np.asarray(values_N, dtype=float), return_counts=True)
    return rng.multinomial(n, count / n, size=resamples) @ value / n


def mean_and_range(drawn: Sequence[float] | np.ndarray) -> Draws:
    """Return the mean of what was drawn, with its range."""
    return Draws(float(np.mean(drawn)), float(np.min(drawn)), float(np.max(drawn)))


def permutation_inside(groups_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation that leaves every feature's group in its place."""
    order = np.empty(len(groups_N), dtype=int)
    order[np.argsort(groups_N, kind="stable")] = np.lexsort((rng.random(len(order)), groups_N))
    return order


def mean_or_none(column: pd.Series) -> float | None:
    """Return the mean of the numbers of a column; None where it has none."""
    numbers = column.dropna()
    return float(numbers.mean()) if len(numbers) else None


def plain(value: Any) -> Any:
    """Return named tuples as mappings, all the way down."""
    if hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
