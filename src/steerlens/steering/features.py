"""Steering with chosen features of one subject: texts at every factor, and what they measure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.analysis.factors import next_factors
from steerlens.config.schema import ChoiceConfig
from steerlens.config.settings import SteeringSettings
from steerlens.engine.generation import ROW, generate, text_key
from steerlens.results import GENERATIONS
from steerlens.steering.metrics import METRICS, MetricRun, Texts

if TYPE_CHECKING:
    from steerlens.engine.run_context import ScoreRun
    from steerlens.engine.subject import LoadedModel, Subject

Steered = tuple[int, str, str]
"""What a text is steered with: feature, control ("" for the feature itself), and the other features
that are steered together with it, "5+30" ("" for none)."""

OF_CONCEPT = ("success",)
"""Metrics that depend on what is steered toward."""


def steer_layer(
    subject: Subject,
    features: Sequence[int],
    settings: SteeringSettings,
    run: ScoreRun,
    evaluator: LoadedModel | None = None,
) -> pd.DataFrame:
    """Rows of `generations.parquet`: every feature and control at every factor, 0 included, or
    with `steer.search` at those that the search asks for.

    Args:
        subject: model and SAE.
        features: ids; for `steer.together` the best first.
        settings: factors, edit, prompts, and what is steered toward.
        run: memory, seed, progress, and where finished texts are kept.
        evaluator: the model whose perplexity is measured; None = the subject's own, unsteered.
    """
    factors = [0.0, *settings.factors]
    steer, generation = settings.steer, settings.generation

    def texts_of(factors_of: Mapping[Steered, Sequence[float]]) -> pd.DataFrame:
        rows = text_rows(factors_of, settings)
        texts = generate(subject, rows, steer, generation, run)
        key = text_key(subject, steer, generation, run)
        chat = bool(generation.chat_template)
        return measure_texts(
            subject, texts, key, run, settings.concept, evaluator, chat_template=chat
        )

    steered: list[Steered] = [
        (feature, control, "") for feature in features for control in ["", *steer.controls]
    ]
    groups = (features[:n] for n in steer.together if n <= len(features))
    steered += [(first, "", "+".join(map(str, others))) for first, *others in groups]
    if steer.search:
        measured = _search(steered, factors, settings.choice, texts_of)
    else:
        measured = texts_of(dict.fromkeys(steered, factors))
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
    """All texts, with columns `ROW`, of features and controls at their wanted factors."""
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
    """Texts at those factors only that a search from coarse to fine asks for.

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
    run: ScoreRun,
    concept: Sequence[str] = (),
    evaluator: LoadedModel | None = None,
    metrics: Collection[str] = tuple(METRICS),
    chat_template: bool = False,
    by: Sequence[str] = ROW,
) -> pd.DataFrame:
    """`texts`, which the columns `by` tell apart, with the columns of `metrics`; kept under `key`,
    that of the texts.

    Those that count the tokens of `concept` are kept apart from the others, so that texts which are
    looked at for several concepts are measured once.
    """
    of_concept = [name for name in metrics if name in OF_CONCEPT]
    names_of_texts = [name for name in metrics if name not in OF_CONCEPT]
    for names, words in ((of_concept, concept), (names_of_texts, ())):
        if names:
            kept_by = {**key, "metrics": sorted(names), "concept": words}
            metric_run = MetricRun(
                run.memory_budget, concept=words, evaluator=evaluator, chat_template=chat_template
            )
            texts = _with_metrics(subject, texts, kept_by, run, metric_run, names, list(by))
    return texts


def _with_metrics(
    subject: Subject,
    texts: pd.DataFrame,
    key: Mapping[str, Any],
    run: ScoreRun,
    metric_run: MetricRun,
    metrics: Collection[str],
    by: list[str],
) -> pd.DataFrame:
    evaluator = metric_run.evaluator
    key = {**key, "evaluator": None if evaluator is None else evaluator.identity}
    stored = run.store.read(key, by) if run.store else None
    measured, missing = texts, texts
    if stored is not None:
        measured = texts.merge(stored.to_pandas(), on=by, how="left", indicator="kept")
        missing = texts.loc[(measured.pop("kept") == "left_only").to_numpy()]
    if len(missing) == 0:
        return measured
    label = f"layer {subject.layer}: {' and '.join(metrics)}"
    with run.task(len(missing), label, "texts", each=len(metrics)) as advance:
        new = _measured(subject, missing, metrics, replace(metric_run, progress=advance), by)
    if run.store:
        import pyarrow as pa

        run.store.add(key, pa.Table.from_pandas(new, preserve_index=False), by)
    tables = [new] if stored is None else [stored.to_pandas(), new]
    return texts.merge(pd.concat(tables, ignore_index=True), on=by, how="left")


def _measured(
    subject: Subject, texts: pd.DataFrame, metrics: Collection[str], run: MetricRun, by: list[str]
) -> pd.DataFrame:
    columns = Texts(
        features=texts["feature"].to_numpy(dtype="int64") if "feature" in texts else None,
        prompts=texts["prompt"].tolist(),
        texts=texts["text"].tolist(),
        token_ids=[list(ids) for ids in texts["token_ids"]],
    )
    columns_measured = texts.loc[:, by]
    for metric in (METRICS[name] for name in metrics):
        columns_measured = columns_measured.assign(
            **metric.measure(columns, subject, metric.Config(), run)
        )
    return columns_measured
