"""What texts measure: the columns of every metric, each kept under its own key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from steerlens.config.registry import source_digest
from steerlens.config.schema import GenerationConfig, SteerConfig
from steerlens.engine.cached_rows import GROUP, cached_groups
from steerlens.engine.generation import (
    ROW,
    Steering,
    TextVectors,
    Vectors,
    generate,
)
from steerlens.steering.metrics import (
    MetricRun,
    Texts,
    metrics,
    needs_feature,
    of_model_alone,
    uses_evaluator,
)

if TYPE_CHECKING:
    import torch

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import LoadedModel, Subject

TEXTS_AT_LEAST = 512
"""Texts that are measured at a time, however little memory there is."""


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


def texts_at_once(subject: Subject, generation: GenerationConfig, memory_budget: int) -> int:
    """Return how many texts are measured at a time, so that a quarter of the budget holds what they
    were made of (`TextVectors`).
    """
    per_text = 2 * generation.max_new_tokens * subject.lm.d_model * subject.lm.dtype.itemsize
    return max(TEXTS_AT_LEAST, memory_budget // 4 // per_text)


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
