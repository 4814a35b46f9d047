"""Steering with chosen features of one subject: texts at every factor, and what they measure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from steerlens.analysis.factors import FactorMeans, choosing_prompts, next_factors
from steerlens.config.registry import source_digest
from steerlens.config.schema import ChoiceConfig, GenerationConfig, SteerConfig
from steerlens.config.settings import SteeringSettings
from steerlens.engine.cached_rows import GROUP, cached_groups
from steerlens.engine.generation import (
    ROW,
    Steering,
    TextVectors,
    Vectors,
    Watch,
    generate,
    steering_with_shares,
    text_key,
)
from steerlens.results import GENERATIONS
from steerlens.steering.metrics import (
    MetricRun,
    Texts,
    metrics,
    needs_feature,
    of_model_alone,
    uses_evaluator,
)
from steerlens.steering.metrics.drift import with_drift

if TYPE_CHECKING:
    import torch

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import LoadedModel, Subject

logger = logging.getLogger(__name__)

TEXTS_AT_LEAST = 512
"""Texts that are measured at a time, however little memory there is."""

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


def texts_at_once(subject: Subject, generation: GenerationConfig, memory_budget: int) -> int:
    """Return how many texts are measured at a time, so that a quarter of the budget holds what they
    were made of (`TextVectors`).
    """
    per_text = 2 * generation.max_new_tokens * subject.lm.d_model * subject.lm.dtype.itemsize
    return max(TEXTS_AT_LEAST, memory_budget // 4 // per_text)


@dataclass
class SteeredVectors:
    """What texts were made of.

    It is at hand of texts that have just been generated. Of those from the store, whose numbers
    were lost or never measured, it is made again, with the text: divergences need it, and the
    perplexity of a text has the same bits only if it is computed in the same way.
    """

    subject: Subject
    steer: SteerConfig
    generation: GenerationConfig
    ctx: RunContext
    steering: Steering | None = None
    by_row: Vectors = field(default_factory=dict)

    def of(self, texts: pd.DataFrame) -> list[TextVectors]:
        """Return what each of `texts` was made of, T tokens as in its `token_ids`; nothing where
        the text can't be made again token by token.
        """
        by = list(self.steering.row if self.steering else ROW)
        keys = list(texts[by].itertuples(index=False, name=None))
        missing = [key not in self.by_row for key in keys]
        if any(missing):
            silent = replace(self.ctx, store=None)
            rows = texts.loc[missing, by].reset_index(drop=True)
            generate(
                self.subject, rows, self.steer, self.generation, silent, self.steering,
                vectors=self.by_row,
            )  # fmt: skip
        vectors = [self.by_row.get(key, TextVectors()) for key in keys]
        lengths = [len(ids) for ids in texts["token_ids"]]
        return [
            TextVectors(*(_of_length(part_TD, length) for part_TD in made_of))
            for made_of, length in zip(vectors, lengths, strict=True)
        ]


def _of_length(vectors: torch.Tensor | None, length: int) -> torch.Tensor | None:
    return vectors if vectors is not None and len(vectors) == length else None


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
    vectors: SteeredVectors | None = None,
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
        vectors: what their tokens were drawn from; None = not to be had.
    """
    return measure_groups(
        subject, [(texts, key)], ctx, settings, concept, evaluator, chat_template, by, [vectors]
    )[0]


def measure_groups(
    subject: Subject,
    groups: Sequence[tuple[pd.DataFrame, Mapping[str, Any]]],
    ctx: RunContext,
    settings: Mapping[str, Any] = MappingProxyType({}),
    concept: Sequence[str] = (),
    evaluator: LoadedModel | None = None,
    chat_template: bool = False,
    by: Sequence[str] = ROW,
    vectors: Sequence[SteeredVectors | None] | None = None,
) -> list[pd.DataFrame]:
    """Return the texts of several keys, which have the same columns, each as `measure_texts`
    does, measured together.
    """
    if not (with_texts := [(texts, key) for texts, key in groups if len(texts)]):
        return [texts for texts, _ in groups]
    tables = [texts.reset_index(drop=True) for texts, _ in with_texts]
    every = vectors or [None] * len(groups)
    sources = [each for each, (texts, _) in zip(every, groups, strict=True) if len(texts)]
    metric_run = MetricRun(
        ctx.memory_budget,
        evaluator=evaluator,
        chat_template=chat_template,
        prompt_states=ctx.cache.prompt_states,
    )
    for name, metric in metrics(of_features="feature" in tables[0]).items():
        words = concept if needs_feature(metric) else ()
        config = settings.get(name) or metric.Config()
        if not getattr(config, "enabled", True):
            continue
        of_metric = {
            "metric": name,
            "settings": dict(vars(config)),
            "source": source_digest("metrics", name),
            "concept": words,
            "evaluator": evaluator.identity if evaluator and uses_evaluator(metric) else None,
        }

        def measured(
            missing: pd.DataFrame,
            measure: Any = metric.measure,
            name: str = name,
            config: Any = config,
            words: Any = words,
        ) -> Iterator[pa.Table]:
            label = f"layer {subject.layer}: {name}"
            with ctx.task(len(missing), label, "texts") as advance:
                columns = measure(
                    _columns(missing, sources),
                    subject,
                    config,
                    replace(metric_run, concept=words, progress=advance),
                )
            table = missing.loc[:, [*by, GROUP]].assign(**columns)
            yield pa.Table.from_pandas(table, preserve_index=False)

        keyed = [
            ({**key, **of_metric}, table)
            for table, (_, key) in zip(tables, with_texts, strict=True)
        ]
        new = cached_groups(ctx.store, keyed, by, measured)
        if of_model := of_model_alone(metric):
            keyed_apart = [
                ({**key, "evaluator": None, "columns": of_model}, table) for key, table in keyed
            ]
            measured_apart = (
                partial(_of_same_pass, new, [*by, *of_model])
                if evaluator is None
                else partial(measured, measure=vars(metric)["measure_model"])
            )
            apart = cached_groups(ctx.store, keyed_apart, by, measured_apart)
            new = [
                table.drop_columns([name for name in of_model if name in table.column_names])
                for table in new
            ]
            tables = [
                pd.concat([table, columns.drop_columns(list(by)).to_pandas()], axis=1)
                for table, columns in zip(tables, apart, strict=True)
            ]
        tables = [
            pd.concat([table, columns.drop_columns(list(by)).to_pandas()], axis=1)
            for table, columns in zip(tables, new, strict=True)
        ]
    measured_tables = iter(tables)
    return [next(measured_tables) if len(texts) else texts for texts, _ in groups]


def _of_same_pass(
    tables: Sequence[pa.Table], columns: Sequence[str], missing: pd.DataFrame
) -> Iterator[pa.Table]:
    """Yield `columns` of the rows of `missing`, which `tables` of all groups have already."""
    frames = [
        table.select(columns).to_pandas().assign(**{GROUP: number})
        for number, table in enumerate(tables)
    ]
    by = [name for name in columns if name in missing]
    rows = missing[[*by, GROUP]].merge(pd.concat(frames), on=[*by, GROUP], how="left")
    yield pa.Table.from_pandas(rows, preserve_index=False)


def _columns(texts: pd.DataFrame, sources: Sequence[SteeredVectors | None]) -> Texts:
    """Return the texts of groups, each of which has its own source of vectors, for a metric."""

    def made_of() -> list[TextVectors]:
        vectors = [TextVectors()] * len(texts)
        numbers = texts[GROUP].to_numpy()
        for number, source in enumerate(sources):
            rows = np.flatnonzero(numbers == number)
            if source is not None and len(rows):
                for row, of_text in zip(rows, source.of(texts.iloc[rows]), strict=True):
                    vectors[row] = of_text
        return vectors

    return Texts(
        features=texts["feature"].to_numpy(dtype="int64") if "feature" in texts else None,
        prompts=texts["prompt"].tolist(),
        texts=texts["text"].tolist(),
        token_ids=[list(ids) for ids in texts["token_ids"]],
        factors=texts["factor"].tolist(),
        made_of=made_of,
    )
