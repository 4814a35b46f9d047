"""Whether two tables of features agree: two runs, two releases, ours and somebody else's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from steerlens.analysis.resampling import Estimate, spearman
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["layer", "feature"]
CLOSE = 1e-3
RESAMPLES = 1_000
LARGEST = 5


class Difference(NamedTuple):
    """A feature on which two tables differ most."""

    layer: int
    feature: int
    value: float
    other_value: float


class Agreement(NamedTuple):
    """How far two tables agree on one score, over the features that have it in both."""

    score: str
    features: int
    spearman: Estimate | None
    """Null where one of the two is constant, or the features are too few."""
    close: float
    """Share of the features whose scores differ by at most 1e-3."""
    median_difference: float
    """Absolute."""
    largest: list[Difference]
    """The largest first, equal ones left out."""


def common_scores(table: pd.DataFrame, other_table: pd.DataFrame) -> list[str]:
    """Return the columns of numbers that both tables have filled, in the order of the first."""
    return [
        str(name)
        for name in table
        if name in other_table
        and name not in KEYS
        and _is_filled(table, name)
        and _is_filled(other_table, name)
    ]


def agreement(
    first_table: pd.DataFrame, other_table: pd.DataFrame, scores: Sequence[str] | None = None
) -> list[Agreement]:
    """Return how far two tables of features agree, score by score.

    Features are the same where layer and id are; what only one of the tables has is left out.

    Args:
        first_table: a table with `layer`, `feature` and scores.
        other_table: another one.
        scores: names of columns; None = all that are filled in both.

    Raises:
        SteerlensError: a table has a feature twice.
    """
    for table in (first_table, other_table):
        if table.duplicated(KEYS).any():
            twice = table.loc[table.duplicated(KEYS), KEYS].iloc[0]
            raise SteerlensError(
                f"layer {twice['layer']}, feature {twice['feature']} is there twice: compare runs "
                "that score each feature once."
            )
    agreements = []
    for score in common_scores(first_table, other_table) if scores is None else scores:
        both = first_table[[*KEYS, score]].merge(
            other_table[[*KEYS, score]], on=KEYS, suffixes=("_1", "_2")
        )
        both = both.dropna().sort_values(KEYS, ignore_index=True)
        if len(both):
            agreements.append(_agreement(score, both))
    return agreements


def _agreement(score: str, both: pd.DataFrame) -> Agreement:
    one_N, other_N = (both[f"{score}_{n}"].to_numpy(dtype=float) for n in (1, 2))
    apart_N = np.abs(one_N - other_N)
    order = np.argsort(-apart_N, kind="stable")[:LARGEST]
    layer_N, feature_N = (both[key].to_numpy(dtype=int) for key in KEYS)
    largest = [
        Difference(int(layer_N[n]), int(feature_N[n]), float(one_N[n]), float(other_N[n]))
        for n in order.tolist()
        if apart_N[n] > 0
    ]
    return Agreement(
        score=score,
        features=len(both),
        spearman=spearman(one_N, other_N, RESAMPLES, np.random.default_rng(0)),
        close=float((apart_N <= CLOSE).mean()),
        median_difference=float(np.median(apart_N)),
        largest=largest,
    )


def _is_filled(table: pd.DataFrame, name: str) -> bool:
    kind = getattr(table[name].dtype, "kind", "")
    return kind in "iuf" and bool(table[name].notna().any())


class Criterion(NamedTuple):
    """What it takes for a published score to count as reproduced."""

    spearman: float
    """At least."""
    close: float
    """At least this share within 1e-3."""
    why: str


REPRODUCED = {
    "output_score": Criterion(
        0.99,
        0.5,
        "nothing is drawn for it, so that only rounding is left (bfloat16 against float32: rank "
        "correlation 0.9997, and scores near 0.5 move by some thousandths)",
    ),
    "input_score": Criterion(0.9, 0.0, "it depends on the texts, and theirs are Neuronpedia's"),
}
"""By score."""

FEWEST = 10
"""Of fewer features nothing is said."""


def reproduced(agreement: Agreement) -> bool | None:
    """Return whether a published score is reproduced; None without a criterion, or of too few
    features.
    """
    criterion = REPRODUCED.get(agreement.score)
    if criterion is None or agreement.features < FEWEST:
        return None
    if not agreement.largest:
        return True
    correlation = agreement.spearman
    enough = correlation is not None and correlation.value >= criterion.spearman
    return enough and agreement.close >= criterion.close
