"""What steering costs the model: answers to tasks under the run's own edit, beside those without.

A task's answers under one edit are kept as soon as they are there, by feature, factor and task, so
that a killed run goes on with the next. The unsteered ones are the same for all SAEs of a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import torch

from steerlens.analysis.capability import compared_answers
from steerlens.config.schema import GenerationConfig
from steerlens.config.settings import SteeringSettings
from steerlens.data.tasks import metric_of
from steerlens.engine.cached_rows import cached_rows
from steerlens.engine.continuations import EditsOf
from steerlens.engine.generation import ROW, text_key
from steerlens.engine.generation.targets import max_activations, row_targets
from steerlens.engine.intervention import Operation, check_affine
from steerlens.engine.intervention.hooks import Edits, NoEdits, SteeringHooks
from steerlens.results import CAPABILITY
from steerlens.storage.provenance import version_of

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject
    from steerlens.steering.harness import SteeredLM

EDIT = ROW[: ROW.index("factor") + 1]
"""What tells edits of one subject apart: feature, control, together and factor."""

UNSTEERED = (-1, "", "", 0.0)
"""The edit that changes nothing."""


def evaluate_layer(
    subject: Subject,
    features: Sequence[int],
    tasks: Sequence[Task],
    settings: SteeringSettings,
    ctx: RunContext,
) -> pd.DataFrame:
    """Return rows of `capability.parquet`: every feature and control at every factor, 0 included,
    on every task.

    Args:
        subject: model and SAE.
        features: ids; for `steer.together` the best first.
        tasks: of lm-evaluation-harness, with their requests.
        settings: factors and edit.
        ctx: memory, seed, progress, and where finished answers are kept.

    Raises:
        SteerlensError: a task can't be measured item by item.
    """
    from steerlens.steering.harness import SteeredLM

    steer = settings.steer
    arms = [(feature, control, "") for feature in features for control in ["", *steer.controls]]
    groups = (features[:n] for n in steer.together if n <= len(features))
    arms += [(first, "", "+".join(map(str, partners))) for first, *partners in groups]
    edits = [(*arm, factor) for arm in arms for factor in settings.factors]
    check_affine(subject.sae, torch.randn(1, 4, subject.sae.cfg.d_in).to(subject.sae.W_dec))
    lm = SteeredLM(subject, lambda n_tokens: NoEdits(len(n_tokens)), ctx.memory_budget)
    rows = []
    for task in tasks:
        of_task = {"task": _identity(task, subject)}
        unsteered_key = {name: subject.key[name] for name in ("model", "code")} | of_task
        key = text_key(subject, steer, GenerationConfig(), ctx)
        key = {name: part for name, part in key.items() if name != "texts"} | of_task
        (unsteered,) = _answers(lm, subject, task, [UNSTEERED], unsteered_key, settings, ctx)
        answers_of = dict(
            zip(edits, _answers(lm, subject, task, edits, key, settings, ctx), strict=True)
        )
        for feature, control, together in arms:
            for factor in sorted({0.0, *settings.factors}):
                answers = answers_of.get((feature, control, together, factor), unsteered)
                rows.append(
                    {
                        "feature": feature,
                        "control": control or None,
                        "together": together or None,
                        "task": task.task_name,
                        "factor": factor,
                        "metric": metric_of(task),
                        **compared_answers(answers, unsteered),
                    }
                )
    return CAPABILITY.frame(
        pd.DataFrame(rows).assign(
            model=subject.lm.name,
            sae=subject.name,
            hook_name=subject.hook_name,
            layer=subject.layer,
        )
    )


def _answers(
    lm: SteeredLM,
    subject: Subject,
    task: Task,
    edits: Sequence[tuple[int, str, str, float]],
    key: dict[str, Any],
    settings: SteeringSettings,
    ctx: RunContext,
) -> list[dict[str, Any]]:
    """Return the columns `item_scores` and `answers` of a task under each edit."""
    from steerlens.steering.harness import item_scores

    rows = pd.DataFrame(edits, columns=pd.Index(EDIT))

    def answered(missing: pd.DataFrame) -> Iterator[pa.Table]:
        total = len(missing) * len(task.instances)
        label = f"layer {subject.layer}: {task.task_name}"
        with ctx.task(total, label, "answers") as advance:
            lm.progress = advance
            for index in range(len(missing)):
                edit = missing.iloc[[index]].reset_index(drop=True)
                lm.edits_of = _edits_of(subject, edit, settings, ctx)
                scores, answers = item_scores(lm, task)
                table = edit.assign(item_scores=[scores], answers=[answers])
                yield pa.Table.from_pandas(table, preserve_index=False)

    table = cached_rows(ctx.store, key, rows, EDIT, answered)
    return table.select(["item_scores", "answers"]).to_pylist()


def _edits_of(
    subject: Subject, edit: pd.DataFrame, settings: SteeringSettings, ctx: RunContext
) -> EditsOf:
    """Return what makes the edits of a batch, all of whose rows are steered as the row `edit`."""
    steer = settings.steer
    if edit["factor"].iloc[0] == 0:
        return lambda n_tokens: NoEdits(len(n_tokens))
    largest_F = max_activations(subject, steer, ctx) if steer.unit == "max_activation" else None
    targets = row_targets(subject, edit, largest_F, ctx.seed)
    operation = Operation(steer.operator, steer.unit, steer.keep_error)

    def of_batch(n_tokens: Sequence[int]) -> Edits:
        of_rows = targets.rows(torch.zeros(len(n_tokens), dtype=torch.int64))
        return SteeringHooks(subject, operation, of_rows, steer.positions, n_tokens)

    return of_batch


def _identity(task: Task, subject: Subject) -> dict[str, Any]:
    """Return what a task's answers depend on beside the model and the edit."""
    instances = [(instance.args, instance.doc) for instance in task.instances]
    settings = {
        name: str(task.get_config(name)) for name in ("metric_list", "filter_list", "output_type")
    }
    return {
        "name": task.task_name,
        "harness": version_of("lm_eval"),
        "asked": hashlib.sha256(json.dumps(instances, default=str).encode()).hexdigest(),
        "n_ctx": int(subject.lm.bridge.cfg.n_ctx),
        **settings,
    }
