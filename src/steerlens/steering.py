"""Steering with chosen features of one subject: texts at every factor, and what they measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.config.parse import parse_concept
from steerlens.config.schema import RunConfig
from steerlens.config.steering import parse_factors, parse_prompts
from steerlens.generation import ROW, generate, text_key
from steerlens.metrics import METRICS, MetricRun, Texts
from steerlens.results import GENERATIONS

if TYPE_CHECKING:
    from steerlens.scores import ScoreRun
    from steerlens.subject import LoadedModel, Subject


def steer_layer(
    subject: Subject,
    features: Sequence[int],
    config: RunConfig,
    run: ScoreRun,
    evaluator: LoadedModel | None = None,
) -> pd.DataFrame:
    """Rows of `generations.parquet`: every feature and control at every factor, 0 included.

    Args:
        subject: model and SAE.
        features: ids.
        config: its `steer`, `generation` and `seed` say what is done.
        run: memory, seed, progress, and where finished texts are kept.
        evaluator: the model whose perplexity is measured; None = the subject's own, unsteered.
    """
    factors = [0.0, *parse_factors(config.steer.factors)]
    rows = text_rows(features, factors, config)
    texts = generate(subject, rows, config.steer, config.generation, run)
    key = text_key(subject, config.steer, config.generation, run)
    concept = parse_concept(config.concept) if config.concept is not None else []
    measured = measure_texts(subject, texts, key, run, concept, evaluator)
    return GENERATIONS.frame(
        measured.assign(
            model=subject.lm.name,
            sae=subject.name,
            hook_name=subject.hook_name,
            layer=subject.layer,
            control=measured["control"].replace("", None),
        )
    )


def text_rows(features: Sequence[int], factors: Sequence[float], config: RunConfig) -> pd.DataFrame:
    """All combinations, with columns `ROW`."""
    every = [
        list(features),
        ["", *config.steer.controls],
        list(factors),
        parse_prompts(config.generation),
        range(config.generation.samples),
    ]
    return pd.MultiIndex.from_product(every, names=ROW).to_frame(index=False)


def measure_texts(
    subject: Subject,
    texts: pd.DataFrame,
    key: Mapping[str, Any],
    run: ScoreRun,
    concept: Sequence[str] = (),
    evaluator: LoadedModel | None = None,
) -> pd.DataFrame:
    """`texts` with the columns of all `METRICS`; kept under `key`, that of the texts."""
    identity = None if evaluator is None else evaluator.identity
    key = {**key, "metrics": sorted(METRICS), "evaluator": identity, "concept": concept}
    known = run.store.read(key, ROW) if run.store else None
    found = texts if known is None else texts.merge(known.to_pandas(), on=list(ROW), how="left")
    missing = texts if known is None else texts.loc[found["success_1"].isna().to_numpy()]
    if len(missing) == 0:
        return found
    total = len(missing) * len(METRICS)
    with run.task(total, f"layer {subject.layer}: metrics", "texts") as advance:
        new = _measured(subject, missing, MetricRun(run.memory_budget, advance, concept, evaluator))
    if run.store:
        import pyarrow as pa

        run.store.add(key, pa.Table.from_pandas(new, preserve_index=False), ROW)
    tables = [new] if known is None else [known.to_pandas(), new]
    return texts.merge(pd.concat(tables, ignore_index=True), on=list(ROW), how="left")


def _measured(subject: Subject, texts: pd.DataFrame, run: MetricRun) -> pd.DataFrame:
    columns = Texts(
        features=texts["feature"].to_numpy(dtype="int64"),
        prompts=texts["prompt"].tolist(),
        texts=texts["text"].tolist(),
        token_ids=[list(ids) for ids in texts["token_ids"]],
    )
    found = texts.loc[:, list(ROW)]
    for metric in METRICS.values():
        found = found.assign(**metric.measure(columns, subject, metric.Config(), run))
    return found
