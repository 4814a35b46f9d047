"""lm-evaluation-harness' model class under steerlens' own edit.

Texts become tokens as the harness' `HFLM` makes them. Continuations are scored by
`engine.continuations`, so that `steer.positions` means what it means where texts are generated;
what a task lets the model write is written by the model's own `generate`, with the edit in its
forwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lm_eval.models import huggingface

from steerlens.data.tasks import metric_of, quiet
from steerlens.engine.continuations import Continuations, EditsOf, Pair
from steerlens.engine.intervention import looks_back
from steerlens.engine.intervention.context import hooked
from steerlens.engine.run_context import no_progress
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from steerlens.engine.subject import Subject

HFLM: Any = huggingface.HFLM  # the decorator that registers it hides its type

ROWS_AT_ONCE = 16
"""Texts that are written at a time; with a temporal SAE, which would see the padding, one."""


class SteeredLM(HFLM):
    """A subject's model, whose forwards are edited as `edits_of` says."""

    def __init__(self, subject: Subject, edits_of: EditsOf, memory_budget: int) -> None:
        """Take the model as it is loaded.

        Args:
            subject: model and SAE.
            edits_of: makes the edits of a batch; may be replaced between requests.
            memory_budget: bytes for what is run at once, and for keys and values that stay.
        """
        self.edits_of = edits_of
        self.progress: Callable[[int], None] = no_progress
        """Called with the number of requests just answered."""
        self._subject = subject
        self._memory_budget = memory_budget
        self._continuations: tuple[list[Pair], Continuations] | None = None
        hf_model: Any = subject.lm.bridge.original_model
        # All that the harness needs of a model; of the model itself it would tie the weights anew.
        model: Any = SimpleNamespace(
            config=hf_model.config, device=subject.lm.device, generate=hf_model.generate
        )
        with quiet():
            super().__init__(
                pretrained=model,
                backend="causal",
                tokenizer=copy.deepcopy(subject.lm.tokenizer),  # it is given a padding token
                max_length=int(subject.lm.bridge.cfg.n_ctx),
                batch_size=1 if looks_back(subject.sae) else ROWS_AT_ONCE,
            )

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(tuple(context), tuple(choice)) for _, context, choice in requests]
        if not all(context and choice for context, choice in pairs):
            raise SteerlensError("an item has an empty choice, of which nothing can be said.")
        # The keys and values of a task's contexts serve one edit after another.
        if self._continuations is None or self._continuations[0] != pairs:
            self._continuations = None  # what it holds goes first
            self._continuations = (
                pairs,
                Continuations(self._subject, pairs, self._memory_budget),
            )
        _, continuations = self._continuations
        scored = continuations.score(self.edits_of, self.progress)
        return [(answer.log_probability, answer.is_greedy) for answer in scored]

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        edits = self.edits_of([context.shape[1]] * len(context))
        with hooked(self._subject, edits):
            written = super()._model_generate(context, *args, **kwargs)
        self.progress(len(context))
        return written


def item_scores(lm: SteeredLM, task: Task) -> tuple[list[float], list[str]]:
    """Return what the harness counts each item of a task for, and what was answered.

    The answer to a question with choices is the number of the most probable one; of a text to go on
    with it is whether the model would write it, and else what it has written.

    Raises:
        SteerlensError: the task's first metric is no number from 0 to 1 of single items.
    """
    instances = [instance for instance in task.instances for _ in range(instance.repeats or 1)]
    for instance in task.instances:
        instance.resps, instance.filtered_resps = [], {}
    for kind in dict.fromkeys(instance.request_type for instance in instances):
        of_kind = [instance for instance in instances if instance.request_type == kind]
        responses = getattr(lm, kind)(of_kind, disable_tqdm=True)
        for instance, response in zip(of_kind, responses, strict=True):
            instance.resps.append(response)
    task.apply_filters()
    of_item: dict[int, list[Any]] = {}
    for instance in sorted(task.instances, key=lambda instance: instance.idx):
        of_item.setdefault(int(instance.doc_id or 0), []).append(instance)
    name = metric_of(task)
    scores, answers = [], []
    for _, of_one in sorted(of_item.items()):
        filtered = [next(iter(instance.filtered_resps.values())) for instance in of_one]
        metrics: Any = task.process_results(of_one[0].doc, filtered)
        score = metrics.get(name)
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise SteerlensError(
                f"evaluate.tasks=[{task.task_name}] is measured by {name}, which is no share of "
                "right answers; take a task with an accuracy."
            )
        scores.append(float(score))
        answers.append(_answer(task, filtered))
    return scores, answers


def _answer(task: Task, responses: Sequence[Any]) -> str:
    if task.OUTPUT_TYPE == "multiple_choice":
        log_probabilities = [log_probability for log_probability, _ in responses]
        return str(log_probabilities.index(max(log_probabilities)))
    first = responses[0]
    return str(first[1] if isinstance(first, tuple) else first)
