"""What scores of features may guide to: success, counted in several ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from steerlens.analysis.equal_kl import success_at_kl
from steerlens.analysis.equal_share import BEYOND_UNSTEERED
from steerlens.analysis.factors import choose_factors, reported_texts
from steerlens.analysis.payoff import beyond_unsteered, scores_of
from steerlens.results import FEATURES, features_alone
from steerlens.results.folder import RunTables

OUTCOMES = {"success": "success_20", "concept success": "concept_success"}
"""Columns of the steering table."""


class Outcome(NamedTuple):
    """What scores may guide to, of N features."""

    name: str
    values_N: np.ndarray
    scores: dict[str, np.ndarray]
    """(N,) each."""
    layers_N: np.ndarray
    """Each feature's layer, as a number from 0."""


def outcomes_of(tables: RunTables) -> Iterator[Outcome]:
    """Yield success, concept success, success beyond that of unsteered texts, success at the same
    KL, between the factors that were tried, and success within a budget of it, the factor chosen of
    these by rule=kl.

    Scores are those of the table of steering, which has also the output score toward the word that
    a feature was steered toward.
    """
    keys, steering = list(FEATURES.keys), features_alone(tables.steering)
    scores = [name for name in scores_of(steering) if any(steering[name].notna().tolist())]
    by_name: dict[str, Any] = {name: steering[[*keys, column]] for name, column in OUTCOMES.items()}
    if (added_N := beyond_unsteered(steering, "success_20")) is not None:
        by_name[BEYOND_UNSTEERED] = steering[keys].assign(outcome=added_N)
    texts = features_alone(tables.generations)
    if tables.choice is not None and any(texts["kl"].notna().tolist()):
        choice, budget = tables.choice, tables.choice.kl_budget
        at_kl = success_at_kl(reported_texts(texts, choice), budget, "success_20")
        by_name[f"success at a KL of {budget:g}"] = at_kl[[*keys, "outcome"]]
        within_kl = choose_factors(texts, dataclasses.replace(choice, rule="kl"))
        by_name[f"success within a KL of {budget:g}"] = within_kl[[*keys, "success_20"]]
    for name, rows in by_name.items():
        rows = rows.set_axis([*keys, "outcome"], axis=1).dropna(subset=["outcome"])
        both: Any = steering[[*keys, *scores]].merge(rows, on=keys).sort_values(keys)
        layer_keys = [key for key in keys if key != "feature"]
        yield Outcome(
            name,
            both["outcome"].to_numpy(float),
            {score: both[score].to_numpy(float, na_value=np.nan) for score in scores},
            both.groupby(layer_keys, dropna=False).ngroup().to_numpy(),
        )
