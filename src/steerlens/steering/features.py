"""Steering with chosen features of one subject: texts at every factor, and what they measure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from steerlens.analysis.factors import FactorMeans, choosing_prompts, next_factors
from steerlens.config.schema import ChoiceConfig
from steerlens.config.settings import SteeringSettings
from steerlens.engine.generation import (
    ROW,
    Steering,
    Watch,
    generate,
    steering_with_shares,
    text_key,
)
from steerlens.results import GENERATIONS
from steerlens.steering.measured import SteeredVectors, measure_texts, texts_at_once
from steerlens.steering.metrics.drift import with_drift

if TYPE_CHECKING:
    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import LoadedModel, Subject

logger = logging.getLogger(__name__)

Steered = tuple[int, str, str]
"""What a text is steered with: feature, control ("" for the feature itself), and the other features
that are steered together with it, "5+30" ("" for none)."""


def steer_layer(
    subject: Subject,
    features: Sequence[int],
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None = None,
    rate: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Return rows of `generations.parquet`: every feature and control at every factor, 0 included,
    or with `steer.search` at those that the search asks for.

    Args:
        subject: model and SAE.
        features: ids; for `steer.together` the best first.
        settings: factors, edit, prompts, and what is steered toward.
        ctx: memory, seed, progress, and where finished texts are kept.
        evaluator: the model whose perplexity is measured; None = the subject's own, unsteered.
        rate: gives texts a judge's columns; None = none rates them.
    """
    factors, steer = [0.0, *settings.factors], settings.steer

    def texts_of(factors_of: Mapping[Steered, Sequence[float]]) -> pd.DataFrame:
        texts = _measured(subject, text_rows(factors_of, settings), settings, ctx, evaluator)
        return rate(texts) if rate else texts

    steered: list[Steered] = [
        (feature, control, "") for feature in features for control in ["", *steer.controls]
    ]
    groups = [features[:n] for n in steer.together if n <= len(features)]
    if len(groups) < len(steer.together):
        logger.warning(
            "layer %s has %s features to steer with, fewer than steer.together=%s: larger groups "
            "are left out.",
            subject.layer,
            len(features),
            steer.together,
        )
    steered += [(first, "", "+".join(map(str, partners))) for first, *partners in groups]
    if steer.search:
        prompts = choosing_prompts(settings.prompts, settings.choice)
        measured = _search(steered, factors, prompts, settings.choice, texts_of)
    else:
        measured = texts_of(dict.fromkeys(steered, factors))
    if settings.shares:
        weighted, shares = zip(*settings.shares.items(), strict=True)
        at_once = _together(subject, weighted, shares, settings, ctx, evaluator)
        measured = pd.concat([measured, at_once], ignore_index=True)
    return _generations(subject, measured, settings)


def steer_together(
    subject: Subject,
    features: Sequence[int],
    shares: Sequence[float],
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None = None,
    watch: Watch | None = None,
) -> pd.DataFrame:
    """Return rows of `generations.parquet`: features at once, each with its own share of every
    factor, 0 included.

    Of one feature, and of several with equal shares, the texts are those of `steer_layer`.

    Args:
        subject: model and SAE.
        features: ids; the first names the rows, and its tokens are what counts as success.
        shares: of the factor, one for each feature.
        settings: factors, edit, prompts, and what is steered toward.
        ctx: memory, seed, progress, and where finished texts are kept.
        evaluator: the model whose perplexity is measured; None = the subject's own, unsteered.
        watch: told the texts as they are written.
    """
    measured = _together(subject, features, shares, settings, ctx, evaluator, watch)
    return _generations(subject, measured, settings)


def _together(
    subject: Subject,
    features: Sequence[int],
    shares: Sequence[float],
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None,
    watch: Watch | None = None,
) -> pd.DataFrame:
    """Return measured texts of features at once."""
    first, *partners = features
    steered = (first, "", "+".join(map(str, partners)))
    rows = text_rows({steered: [0.0, *settings.factors]}, settings)
    are_equal = all(share == 1 / len(features) for share in shares)
    steering = (
        None if are_equal else steering_with_shares(subject, features, shares, settings.steer, ctx)
    )
    return _measured(subject, rows, settings, ctx, evaluator, steering, watch)


def _measured(
    subject: Subject,
    rows: pd.DataFrame,
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None,
    steering: Steering | None = None,
    watch: Watch | None = None,
) -> pd.DataFrame:
    """Return rows with their texts and the columns of every metric."""
    steer, generation = settings.steer, settings.generation
    by = list(steering.row if steering else ROW)
    key = text_key(subject, steer, generation, ctx, steering)
    at_once = texts_at_once(subject, generation, ctx.memory_budget)
    measured = []
    for start in range(0, len(rows), at_once):
        part = rows.iloc[start : start + at_once].reset_index(drop=True)
        vectors = SteeredVectors(subject, steer, generation, ctx, steering)
        texts = generate(subject, part[by], steer, generation, ctx, steering, watch, vectors.by_row)
        texts = pd.concat([part, texts.drop(columns=by)], axis=1)
        chat = bool(generation.chat_template)
        measured.append(
            measure_texts(
                subject, texts, key, ctx, settings.metrics, settings.concept, evaluator, chat,
                vectors=vectors,
            )
        )  # fmt: skip
    return pd.concat(measured, ignore_index=True) if measured else rows


def _generations(
    subject: Subject, measured: pd.DataFrame, settings: SteeringSettings
) -> pd.DataFrame:
    measured = with_drift(measured)
    return GENERATIONS.frame(
        measured.assign(
            model=subject.lm.name,
            sae=subject.name,
            hook_name=subject.hook_name,
            layer=subject.layer,
            control=measured["control"].replace("", None),
            together=measured["together"].replace("", None),
            concept=settings.concept_label,
        )
    )


def text_rows(
    factors_of: Mapping[Steered, Sequence[float]], settings: SteeringSettings
) -> pd.DataFrame:
    """Return all texts, with columns `ROW`, of features and controls at their wanted factors."""
    rows = [
        (*steered, factor, prompt, sample)
        for steered, factors in factors_of.items()
        for factor in factors
        for prompt in settings.prompts
        for sample in range(settings.generation.samples)
    ]
    return pd.DataFrame(rows, columns=list(ROW))


def _search(
    steered: Sequence[Steered],
    factors: Sequence[float],
    prompts: Sequence[str],
    choice: ChoiceConfig,
    texts_of: Callable[[Mapping[Steered, Sequence[float]]], pd.DataFrame],
) -> pd.DataFrame:
    """Return texts at those factors only that a search from coarse to fine asks for.

    It sees the texts of `prompts` alone. All features go on together, so that batches are full in
    every round.
    """
    measured_of: dict[Steered, dict[float, FactorMeans]] = {key: {} for key in steered}
    rounds: list[pd.DataFrame] = []
    while True:
        next_of = {
            key: next_factors(factors, measured, choice) for key, measured in measured_of.items()
        }
        factors_of = {key: factors for key, factors in next_of.items() if factors}
        if not factors_of:
            return pd.concat(rounds, ignore_index=True)
        rounds.append(texts_of(factors_of))
        costs = [name for name in FactorMeans._fields[1:] if name in rounds[-1]]
        of_prompts = rounds[-1].loc[rounds[-1]["prompt"].isin(list(prompts))]
        measured = of_prompts.astype(dict.fromkeys(costs, float))  # also where all are null
        groups = measured.groupby(["feature", "control", "together", "factor"], as_index=False)
        means = groups.agg(dict.fromkeys((choice.success, *costs), "mean"))
        for row in means.to_dict("records"):
            means_of = measured_of[row["feature"], row["control"], row["together"]]
            means_of[row["factor"]] = FactorMeans(
                row[choice.success], **{cost: row[cost] for cost in costs}
            )
