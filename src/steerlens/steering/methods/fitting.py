"""Directions of many concepts by many methods: every text is read once for all methods, and no more
concepts at a time than fit in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerlens.config.registry import load_part
from steerlens.steering.methods import Method
from steerlens.steering.methods.directions import Detection, Directions, detect, joined, text_scores
from steerlens.steering.methods.labelled import label, token_vectors
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import Budget

if TYPE_CHECKING:
    from steerlens.data.concept_sets import Concept, ConceptSet
    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject


@dataclass(frozen=True)
class Fitted:
    """A method's directions of a concept set, in its order."""

    method: str
    directions: Directions
    detection: Detection
    """On the texts to test on."""

    @property
    def scale_C(self) -> list[float]:
        """How much of each concept's direction the factor 1 adds."""
        if self.directions.scale_C is not None:
            return self.directions.scale_C.tolist()
        return self.detection.max_activation_C


def join_fitted(parts: Sequence[Fitted]) -> Fitted:
    """Stack what one method has found for several groups of concepts."""
    detections = [part.detection for part in parts]
    return Fitted(
        parts[0].method,
        joined([part.directions for part in parts]),
        Detection(
            [auroc for detection in detections for auroc in detection.auroc_C],
            [largest for detection in detections for largest in detection.max_activation_C],
        ),
    )


def fit_concepts(
    subject: Subject,
    concepts: ConceptSet,
    configs: Mapping[str, Any],
    ctx: RunContext,
    chat_template: bool = False,
) -> dict[str, Fitted]:
    """Return directions of all `concepts` by every method of `configs`, and how well they detect.

    Args:
        subject: model and SAE.
        concepts: with texts, unless every method can do without.
        configs: settings of the methods, by name; of one with several settings
            also by its name and a number ("SAE-A 2").
        ctx: memory, seed and progress.
        chat_template: whether texts are a user's and the model's turns.

    Raises:
        SteerlensError: for an unknown method, a concept that lacks what a method needs, before the
            model has read anything; for a tokenizer without a chat template.
    """
    methods = {name: method_named(name) for name in configs}
    if any(map(reads_texts, methods.values())):
        concepts.check_texts()
    if "SAE" in configs:
        concepts.check_features(subject.layer, subject.d_sae, subject.name)
    directions: dict[str, list[Directions]] = {name: [] for name in configs}
    detections: dict[str, list[Detection]] = {name: [] for name in configs}
    name, each = f"layer {subject.layer}: directions", len(configs)
    with ctx.task(len(concepts), name, "concepts", each=each) as advance:
        for group in _groups(subject, concepts.concepts, ctx.memory_budget // 2):
            train = label(subject, group, chat_template)
            steps: list[int] = []

            def progress(n_done: int, step_sizes: list[int] = steps) -> None:
                step_sizes.append(n_done)
                advance(n_done)

            task = Task(subject, tuple(group), train, ctx.memory_budget // 2, progress, ctx)
            for n, (name, config) in enumerate(configs.items(), start=1):
                directions[name].append(methods[name].fit(task, config, ctx.seed))
                progress(n * len(group) - sum(steps))
            del task  # or its vectors would stay while the texts to test on are read
            _detect(subject, group, directions, detections, ctx, chat_template)
    return {
        name: join_fitted(
            [
                Fitted(name, *of_group)
                for of_group in zip(directions[name], detections[name], strict=True)
            ]
        )
        for name in configs
    }


def method_named(name: str) -> Method:
    """Return the method of a key of `fit_concepts`; refuses an unknown one."""
    return load_part("methods", re.sub(r" \d+$", "", name))


def reads_texts(method: Method) -> bool:
    """Return whether a method learns from the concepts' texts."""
    return getattr(method, "READS_TEXTS", True)


def budget_of_method(method: Any, config: Any, n_positives: int, n_negatives: int) -> Budget:
    """Return what learning a concept with so many texts takes; of a method that doesn't say so, how
    often it goes through them.
    """
    if hasattr(method, "budget"):
        return method.budget(config, n_positives, n_negatives)
    return Budget(getattr(config, "epochs", None))


def _detect(
    subject: Subject,
    group: Sequence[Concept],
    directions: Mapping[str, list[Directions]],
    detections: Mapping[str, list[Detection]],
    ctx: RunContext,
    chat_template: bool,
) -> None:
    """Add the detection of the last directions of every method."""
    test = label(subject, group, chat_template, test=True)
    vectors = None
    if test.texts:
        vectors = token_vectors(subject, test.texts, ctx.memory_budget // 2)
    for name, parts in directions.items():
        scores_NC = parts[-1].vectors_CD.new_empty(0, len(group))
        if vectors is not None:
            scores_NC = text_scores(subject, parts[-1], vectors)
        detections[name].append(detect(scores_NC, test))


def _groups(subject: Subject, concepts: Sequence[Concept], memory: int) -> Iterator[list[Concept]]:
    """Yield concepts whose texts' vectors fit in memory together, one at least."""
    budget = memory // (4 * int(subject.sae.cfg.d_in))
    group: list[Concept] = []
    texts_seen: set[Any] = set()
    size = 0
    for concept in concepts:
        texts = {*concept.positives, *concept.negatives}
        # About a token in three characters, generously.
        new = sum(8 + len(example.prompt + example.text) // 3 for example in texts - texts_seen)
        if group and size + new > budget:
            yield group
            group, texts_seen, size = [], set(), 0
            new = sum(8 + len(example.prompt + example.text) // 3 for example in texts)
        group.append(concept)
        texts_seen |= texts
        size += new
    if group:
        yield group
