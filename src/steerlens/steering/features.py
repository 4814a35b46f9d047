"""Steering with chosen features of one subject: texts at every factor, and what they measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from steerlens.analysis.factors import next_factors
from steerlens.config.registry import source_digest
from steerlens.config.schema import ChoiceConfig
from steerlens.config.settings import SteeringSettings
from steerlens.engine.cached_rows import cached_rows
from steerlens.engine.generation import (
    ROW,
    Steering,
    Watch,
    generate,
    steering_with_shares,
    text_key,
)
from steerlens.results import GENERATIONS
from steerlens.steering.metrics import Metric, MetricRun, Texts, metrics, needs_feature

if TYPE_CHECKING:
    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import LoadedModel, Subject

Steered = tuple[int, str, str]
"""What a text is steered with: feature, control ("" for the feature itself), and the other features
that are steered together with it, "5+30" ("" for none)."""


def steer_layer(
    subject: Subject,
    features: Sequence[int],
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None = None,
) -> pd.DataFrame:
    """Return rows of `generations.parquet`: every feature and control at every factor, 0 included,
    or with `steer.search` at those that the search asks for.

    Args:
        subject: model and SAE.
        features: ids; for `steer.together` the best first.
        settings: factors, edit, prompts, and what is steered toward.
        ctx: memory, seed, progress, and where finished texts are kept.
        evaluator: the model whose perplexity is measured; None = the subject's own, unsteered.
    """
    factors, steer = [0.0, *settings.factors], settings.steer

    def texts_of(factors_of: Mapping[Steered, Sequence[float]]) -> pd.DataFrame:
        return _measured(subject, text_rows(factors_of, settings), settings, ctx, evaluator)

    steered: list[Steered] = [
        (feature, control, "") for feature in features for control in ["", *steer.controls]
    ]
    groups = (features[:n] for n in steer.together if n <= len(features))
    steered += [(first, "", "+".join(map(str, others))) for first, *others in groups]
    if steer.search:
        measured = _search(steered, factors, settings.choice, texts_of)
    else:
        measured = texts_of(dict.fromkeys(steered, factors))
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
    first, *others = features
    steered = (first, "", "+".join(map(str, others)))
    rows = text_rows({steered: [0.0, *settings.factors]}, settings)
    are_equal = all(share == 1 / len(features) for share in shares)
    steering = (
        None if are_equal else steering_with_shares(subject, features, shares, settings.steer, ctx)
    )
    measured = _measured(subject, rows, settings, ctx, evaluator, steering, watch)
    return _generations(subject, measured, settings)


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
    texts = generate(subject, rows[by], steer, generation, ctx, steering, watch)
    texts = pd.concat([rows, texts.drop(columns=by)], axis=1)
    key = text_key(subject, steer, generation, ctx, steering)
    chat = bool(generation.chat_template)
    return measure_texts(
        subject, texts, key, ctx, settings.metrics, settings.concept, evaluator, chat
    )


def _generations(
    subject: Subject, measured: pd.DataFrame, settings: SteeringSettings
) -> pd.DataFrame:
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
    choice: ChoiceConfig,
    texts_of: Callable[[Mapping[Steered, Sequence[float]]], pd.DataFrame],
) -> pd.DataFrame:
    """Return texts at those factors only that a search from coarse to fine asks for.

    All features go on together, so that batches are full in every round.
    """
    measured_of: dict[Steered, dict[float, tuple[float, float]]] = {key: {} for key in steered}
    rounds: list[pd.DataFrame] = []
    while True:
        next_of = {
            key: next_factors(factors, measured, choice) for key, measured in measured_of.items()
        }
        factors_of = {key: factors for key, factors in next_of.items() if factors}
        if not factors_of:
            return pd.concat(rounds, ignore_index=True)
        rounds.append(texts_of(factors_of))
        groups = rounds[-1].groupby(["feature", "control", "together", "factor"], as_index=False)
        means = groups.agg({choice.success: "mean", "perplexity": "mean"})
        for row in means.to_dict("records"):
            measured = measured_of[row["feature"], row["control"], row["together"]]
            measured[row["factor"]] = (row[choice.success], row["perplexity"])


def measure_texts(
    subject: Subject,
    texts: pd.DataFrame,
    key: Mapping[str, Any],
    ctx: RunContext,
    settings: Mapping[str, Any] = MappingProxyType({}),
    concept: Sequence[str] = (),
    evaluator: LoadedModel | None = None,
    chat_template: bool = False,
    by: Sequence[str] = ROW,
) -> pd.DataFrame:
    """Return `texts` with the columns of every metric, kept under `key`, that of the texts.

    Metrics that need a steered feature are left out where `texts` has none. Only their key has the
    `concept`, so that texts which are looked at for several concepts are measured once.

    Args:
        subject: model and SAE.
        texts: of `generate`.
        key: all that they depend on.
        ctx: memory, progress, and where numbers are kept.
        settings: of metrics, by name; the others have their defaults.
        concept: what is steered toward.
        evaluator: the model whose perplexity is measured; None = the subject's own, unsteered.
        chat_template: whether prompts are requests inside a template, and texts the answers.
        by: the columns that tell the texts apart.
    """
    if texts.empty:
        return texts
    metric_run = MetricRun(ctx.memory_budget, evaluator=evaluator, chat_template=chat_template)
    for name, metric in metrics(of_features="feature" in texts).items():
        words = concept if needs_feature(metric) else ()
        config = settings.get(name) or metric.Config()
        metric_key = {
            **key,
            "metric": name,
            "settings": asdict(config) if is_dataclass(config) else None,
            "source": source_digest("metrics", name),
            "concept": words,
            "evaluator": None if evaluator is None else evaluator.identity,
        }

        def measured(
            missing: pd.DataFrame,
            name: str = name,
            metric: Metric = metric,
            config: Any = config,
            words: Any = words,
        ) -> Iterator[pa.Table]:
            label = f"layer {subject.layer}: {name}"
            with ctx.task(len(missing), label, "texts") as advance:
                columns = metric.measure(
                    _columns(missing),
                    subject,
                    config,
                    replace(metric_run, concept=words, progress=advance),
                )
            table = missing.loc[:, list(by)].assign(**columns)
            yield pa.Table.from_pandas(table, preserve_index=False)

        new = cached_rows(ctx.store, metric_key, texts, by, measured).drop_columns(list(by))
        texts = pd.concat([texts.reset_index(drop=True), new.to_pandas()], axis=1)
    return texts


def _columns(texts: pd.DataFrame) -> Texts:
    return Texts(
        features=texts["feature"].to_numpy(dtype="int64") if "feature" in texts else None,
        prompts=texts["prompt"].tolist(),
        texts=texts["text"].tolist(),
        token_ids=[list(ids) for ids in texts["token_ids"]],
    )
