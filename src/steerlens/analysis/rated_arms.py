"""What rated texts say of each way of steering: its factor for a concept, its score over concepts.

An arm is a method, for SAE features also their rank; its number for a concept is the overall rating
of its texts there (see `analysis.ratings`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from steerlens.analysis.ratings import (
    PER_TEXT,
    RESAMPLES,
    JudgesAgreement,
    agreement_of_judges,
    numbers,
)
from steerlens.analysis.resampling import Estimate, estimate, resampled_means
from steerlens.errors import SteerlensError
from steerlens.results import EVALUATING

KINDS = ("llm", "lexical")
ASPECTS = ("concept", "instruction", "fluency")
ARM = ["method", "rank", "concept_id"]


def kinds_of(ratings: pd.DataFrame) -> list[str]:
    """Return who has rated: `llm`, `lexical`."""
    return [kind for kind in KINDS if aspects_of(ratings, kind)]


def aspects_of(ratings: Any, kind: str) -> list[str]:
    """Return the columns that this kind of judge has filled."""
    names = [f"{kind}_{aspect}" for aspect in ASPECTS]
    return [name for name in names if name in ratings and ratings[name].notna().any()]


def judges_agreement(ratings_a: Any, ratings_b: Any) -> dict[str, JudgesAgreement]:
    """Return how far the judges of two runs agree on the texts that are the same in both, by
    aspect; only aspects that both have rated.
    """
    same = ["layer", *ARM, "factor", "prompt", "sample", "text"]
    sides = []
    for ratings in (ratings_a, ratings_b):
        kinds = kinds_of(ratings)
        columns = aspects_of(ratings, kinds[0]) if kinds else []
        names = {column: column.partition("_")[2] for column in columns}
        sides.append(ratings[[*same, *columns]].rename(columns=names))
    both = sides[0].merge(sides[1], on=same, suffixes=("", "_other"))
    by_aspect = {}
    for aspect in ASPECTS:
        if f"{aspect}_other" in both and len(both):
            by_aspect[aspect] = agreement_of_judges(both[aspect], both[f"{aspect}_other"])
    return by_aspect


def best_factors(ratings: pd.DataFrame) -> pd.DataFrame:
    """Return the factor of each arm and concept whose texts have the highest mean rating, text by
    text (AxBench); of equal ones the smallest, and `undecided` where that rating is 0 at several
    factors. None for those without a rated text.

    Raises:
        SteerlensError: no text is rated.
    """
    kinds = kinds_of(ratings)
    if not kinds:
        raise SteerlensError("the judge has rated no text: no factor can be chosen.")
    aspects = aspects_of(ratings, kinds[0])
    rated: Any = numbers(ratings, aspects, [*ARM, "factor"], PER_TEXT).dropna(subset="number")
    ordered = rated.sort_values([*ARM, "number", "factor"], ascending=[True] * 3 + [False, True])
    several = ordered.duplicated(ARM, keep=False)
    best = ordered.assign(undecided=several & (ordered["number"] == 0)).drop_duplicates(ARM)
    return best[[*ARM, "factor", "undecided"]].reset_index(drop=True)


def changed_texts(ratings: pd.DataFrame, by: Sequence[str], of_text: Sequence[str]) -> pd.DataFrame:
    """Return how many rated texts steering has `changed`, how many of these are `worse`, and the
    `side_effect_ratio`, the one over the other (CorrSteer, arXiv 2508.12535).

    A text is worse whose ratings, but that of the concept, add up to less than the unsteered
    one's; texts that lack one are left out. Empty where no unsteered text or no such aspect is
    rated.

    Args:
        ratings: steered texts, and unsteered ones, at factor 0.
        by: the columns that tell apart what texts are steered with, a row of the result each.
        of_text: those that a steered text has in common with its unsteered one alone.
    """
    by, of_text = list(by), list(of_text)
    kinds = kinds_of(ratings)
    aspects = [
        aspect
        for aspect in (aspects_of(ratings, kinds[0]) if kinds else [])
        if not aspect.endswith("_concept")
    ]
    rows: Any = ratings.dropna(subset=aspects)
    rows = rows.assign(number=rows[aspects].sum(axis=1))
    unsteered = rows.loc[rows["factor"] == 0, [*of_text, "text", "number"]]
    steered = rows.loc[rows["factor"] != 0]
    both = steered.merge(
        unsteered.drop_duplicates(of_text), on=of_text, suffixes=("", "_unsteered")
    )
    if not aspects:
        both = both.iloc[:0]
    changed = (both["text"] != both["text_unsteered"]).astype(bool)
    worse = changed & (both["number"] < both["number_unsteered"]).astype(bool)
    groups = both[by].assign(changed=changed, worse=worse).groupby(by, as_index=False, dropna=False)
    counts = groups.sum().astype({"changed": "Int64", "worse": "Int64"})
    ratio = counts["worse"] / counts["changed"].where(counts["changed"] > 0)
    return counts.assign(side_effect_ratio=ratio)


def arm_numbers(
    ratings: pd.DataFrame, kind: str, aggregation: str, split: str = EVALUATING
) -> pd.DataFrame:
    """Return the number of each arm, concept and factor in every layer, on the texts of `split`."""
    rows = ratings.loc[ratings["split"] == split]
    by = ["layer", *ARM, "concept", "factor"]
    return numbers(rows, aspects_of(ratings, kind), by, aggregation).dropna(subset="number")


def over_concepts(rated: Any, seed: int = 0) -> Estimate | None:
    """Return the mean number of some arms' rows.

    For the interval concepts are drawn again, with all of their features: texts of one concept are
    not independent.
    """
    if not len(rated):
        return None
    by_concept = rated.groupby("concept_id")["number"].agg(["size", "mean"])
    rng = np.random.default_rng(seed)
    size_1C, mean_C = by_concept["size"].to_numpy(float)[None], by_concept["mean"].to_numpy(float)
    drawn_1R = resampled_means(size_1C, mean_C, RESAMPLES, rng)
    return estimate(float(rated["number"].mean()), drawn_1R[0], len(by_concept))


def paired_difference(rows_of_method: Any, baseline: Any) -> tuple[Estimate | None, int]:
    """Give the mean of what `rows_of_method` have more than `baseline`, concept by concept, and
    the number of concepts that both have.
    """
    means = [rows.groupby("concept_id")["number"].mean() for rows in (rows_of_method, baseline)]
    less = (means[0] - means[1]).dropna()
    rows = pd.DataFrame({"concept_id": less.index, "number": less.to_numpy()})
    return over_concepts(rows), len(rows)
