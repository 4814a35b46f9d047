"""Everything that a concept set is steered with, learnt once: an arm for each method, and for each
of a concept's SAE features.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from steerlens.config.method_settings import with_settings
from steerlens.config.registry import parts_of, source_digest
from steerlens.config.schema import ConceptsConfig
from steerlens.engine.cached_rows import cached_values
from steerlens.engine.generation import Steering
from steerlens.steering.methods import fitted_io, lora, loreft
from steerlens.steering.methods.directions import Detection, Directions, direction_targets
from steerlens.steering.methods.fitted_io import Learnt
from steerlens.steering.methods.fitting import (
    Fitted,
    budget_of_method,
    fit_concepts,
    join_fitted,
    method_named,
    reads_texts,
)
from steerlens.steering.methods.labelled import label
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import Budget

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.data.concept_sets import ConceptSet
    from steerlens.engine.intervention import Targets
    from steerlens.engine.intervention.hooks import Edits
    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject

SAE, TOGETHER, SAE_A, PROMPT = "SAE", "SAE together", "SAE-A", "Prompt"
UNSTEERED = "No steering"
EDITS: Mapping[str, Any] = {loreft.NAME: loreft, lora.NAME: lora}
"""Methods that AxBench uses as they were trained: with the factor 1 alone."""
PART_ON_CPU, PART_ON_GPU = 4, 64
"""Concepts that what takes long learns and stores together; a killed run loses one part at most."""


@dataclass(frozen=True)
class SteeringMethod:
    """One way of steering toward every concept of a set."""

    method: str
    rank: int = 0
    """SAE: which of a concept's features, 0 the best."""
    learnt: Learnt | None = None
    """None where nothing is edited: unsteered, or by words in the prompt."""
    config: Any = None
    """Of what is learnt, its settings."""
    source: Any = None
    """The module that learns it; None = nothing is trained."""
    reads_texts: bool = False
    """Whether it was learnt from the concept's texts."""

    @property
    def name(self) -> str:
        """What its texts are kept under."""
        return f"{self.method} {self.rank + 1}" if self.rank else self.method

    def budget(self, n_positives: int, n_negatives: int) -> Budget:
        """Return what learning a concept with so many texts took."""
        return budget_of_method(self.source, self.config, n_positives, n_negatives)

    def factors(self, grid: Sequence[float]) -> tuple[float, ...]:
        """Return the factors that it is tried with."""
        if self.learnt is None:
            return (0.0,)
        return (1.0,) if self.method in EDITS else tuple(grid)

    def feature(self, index: int) -> int | None:
        """Return the SAE feature of the concept at `index` in its set, if it steers with one
        alone.
        """
        if isinstance(self.learnt, Fitted) and self.learnt.directions.features_C is not None:
            return int(self.learnt.directions.features_C[index])
        return None

    def detection(self, index: int) -> tuple[float | None, float | None]:
        """Return the area under the ROC curve of the concept at `index`, if it detects, and how
        much of its direction the factor 1 adds.
        """
        if not isinstance(self.learnt, Fitted) or self.method == TOGETHER:
            return None, None
        return self.learnt.detection.auroc_C[index], self.learnt.scale_C[index]

    def steering(self, subject: Subject, ids: Sequence[int]) -> Steering:
        """Return how rows are steered whose `concept_id` is one of `ids`, those of the set in
        order.
        """
        key: dict[str, Any] = {"arm": self.name}
        if self.learnt is not None:
            key["tensors"] = _digest(fitted_io.tensors_of(self.learnt))
        if isinstance(self.learnt, Fitted):
            key["max_activation"] = self.learnt.scale_C
        index_of = {id: index for index, id in enumerate(ids)}
        if isinstance(self.learnt, lora.Lora | loreft.Loreft):
            edits_of = partial(_edits, self.learnt, subject, index_of)
            return Steering(self.name, "concept_id", key, edits_of=edits_of)
        targets_of = partial(_targets, self.learnt, subject, index_of)
        return Steering(self.name, "concept_id", key, targets_of)


def _edits(
    learnt: lora.Lora | loreft.Loreft,
    subject: Subject,
    index_of: Mapping[int, int],
    batch: pd.DataFrame,
    n_prompt_B: Sequence[int],
) -> Edits:
    concept_B = [index_of[id] for id in batch["concept_id"]]
    factor_B = batch["factor"].tolist()
    if isinstance(learnt, lora.Lora):
        return lora.LoraEdits(subject, learnt, concept_B, factor_B)
    return loreft.LoreftEdits(subject, learnt, concept_B, factor_B, n_prompt_B)


def _targets(
    learnt: Fitted | None, subject: Subject, index_of: Mapping[int, int], batch: pd.DataFrame
) -> Targets:
    concept_B = [index_of[id] for id in batch["concept_id"]]
    if learnt is None:  # nothing is added
        nothing = Directions(torch.zeros(len(index_of), int(subject.sae.cfg.d_in)))
        factor_B, largest_C = [0.0] * len(batch), [0.0] * len(index_of)
        return direction_targets(subject, nothing, concept_B, factor_B, largest_C)
    factor_B = batch["factor"].tolist()
    return direction_targets(subject, learnt.directions, concept_B, factor_B, learnt.scale_C)


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def learn_arms(
    subject: Subject,
    concepts: ConceptSet,
    config: ConceptsConfig,
    ctx: RunContext,
    load_weights: Callable[[], Any],
    chat_template: bool = False,
) -> list[SteeringMethod]:
    """Return the arms of `config.methods`, in their order; what was learnt before is found in the
    store.

    Args:
        subject: model and SAE.
        concepts: what is steered toward.
        config: the methods and their settings.
        ctx: memory, seed, progress and store.
        load_weights: loads the plain model, on which LoRA trains.
        chat_template: whether texts are a user's and the model's turns.

    Raises:
        SteerlensError: a concept lacks what a method needs, or a setting is none of its method's.
    """
    named = all(concept.feature is not None for concept in concepts.concepts)
    ranks = 1 if named else config.features
    wanted_names: dict[str, None] = {}
    for method in config.methods:
        wanted_names |= dict.fromkeys(_directions_of(method, ranks, config.together, named))
    settings = {name: _settings(name, config.settings) for name in wanted_names}
    learnt = _learn_directions(subject, concepts, settings, ctx, chat_template)

    def arm(method: str, name: str, rank: int = 0) -> SteeringMethod:
        source = method_named(name)
        return SteeringMethod(
            method, rank, learnt[name], settings[name], source, reads_texts(source)
        )

    arms: list[SteeringMethod] = []
    for method in config.methods:
        if method == SAE:
            names = _directions_of(method, ranks, config.together, named)
            arms += [arm(SAE, name, rank) for rank, name in enumerate(names)]
        elif method == TOGETHER:
            names = _directions_of(method, ranks, config.together, named)
            together = _together([learnt[name] for name in names])
            arms.append(SteeringMethod(TOGETHER, learnt=together, reads_texts=True))
        elif method in EDITS:
            config_of = _edits_config(method, subject.lm.n_layers, config.settings)
            edits = _learn_edits(
                method, subject, concepts, config_of, ctx, load_weights, chat_template
            )
            arms.append(SteeringMethod(method, 0, edits, config_of, EDITS[method], True))
        else:
            arms.append(SteeringMethod(method) if method == PROMPT else arm(method, method))
    return arms


def _directions_of(method: str, ranks: int, together: int, named: bool) -> list[str]:
    """Return the keys of `fit_concepts` that a method's arms are made of."""
    if method == SAE and named:
        return [SAE]
    if method in (SAE, TOGETHER):
        n = ranks if method == SAE else together
        return [SAE_A, *(f"{SAE_A} {rank + 1}" for rank in range(1, n))]
    return [] if method in (*EDITS, PROMPT) else [method]


def _settings(name: str, settings: Any) -> Any:
    """Return the settings of a key of `fit_concepts`."""
    method = method_named(name)
    method_name = name if name in parts_of("methods") else SAE_A
    typed = dict((settings or {}).get(method_name, {}))
    if method_name != name:
        typed["rank"] = int(name.removeprefix(f"{SAE_A} ")) - 1
    return with_settings(method.Config(), method_name, typed)


def _key(
    subject: Subject, concepts: ConceptSet, name: str, config: Any, ctx: RunContext, chat: bool
) -> dict[str, Any]:
    """Return all that what a method learns depends on."""
    texts = hashlib.sha256(repr(concepts.concepts).encode()).hexdigest()
    of_subject = subject.key
    if name in EDITS:  # of the whole model: the same whatever SAE and layer
        del of_subject["sae"]
    return {
        **of_subject,
        "bos": subject.bos,
        "concepts": texts,
        "learnt": name,
        "source": source_digest("methods", name),
        "settings": dataclasses.asdict(config),
        "chat_template": chat,
        "seed": ctx.seed,
    }


def _learn_directions(
    subject: Subject,
    concepts: ConceptSet,
    settings: Mapping[str, Any],
    ctx: RunContext,
    chat: bool,
) -> dict[str, Fitted]:
    """Return by key of `fit_concepts`.

    Quick methods are learnt together, so that texts are read once.
    """
    keys = {
        name: _key(subject, concepts, name, method_config, ctx, chat)
        for name, method_config in settings.items()
    }

    def fit_quick(missing: Sequence[str]) -> Iterable[tuple[str, Learnt]]:
        quick = {name: settings[name] for name in missing}
        return fit_concepts(subject, concepts, quick, ctx, chat).items()

    learnt: dict[str, Any] = cached_values(
        [name for name in settings if not _trains(name)],
        lambda name: fitted_io.find(ctx.store, keys[name]),
        fit_quick,
        lambda name, fitted: fitted_io.keep(ctx.store, keys[name], fitted),
    )
    for name in settings:
        if _trains(name):
            fit = partial(_fit_alone, subject, name, settings[name], ctx, chat)
            key = partial(_key, subject, name=name, config=settings[name], ctx=ctx, chat=chat)
            learnt[name] = join_fitted(_in_parts(subject, concepts, name, ctx, key, fit))
    return learnt


def _trains(name: str) -> bool:
    """Return whether the method of a key of `fit_concepts` takes long."""
    return getattr(method_named(name), "TRAINS", False)


def _fit_alone(
    subject: Subject,
    name: str,
    config: Any,
    ctx: RunContext,
    chat: bool,
    concepts: ConceptSet,
    advance: Callable[..., None],
) -> Fitted:
    """Learn one method from some of a run's concepts, whose bar `advance` moves."""
    silent = dataclasses.replace(ctx, task=lambda *_, **__: nullcontext(advance))
    return fit_concepts(subject, concepts, {name: config}, silent, chat)[name]


def _in_parts(
    subject: Subject,
    concepts: ConceptSet,
    name: str,
    ctx: RunContext,
    key: Callable[[ConceptSet], Mapping[str, Any]],
    fit: Callable[[ConceptSet, Callable[..., None]], Any],
) -> list[Any]:
    """Yield what takes long is learnt and stored a few concepts at a time, so that a killed run
    goes on.

    A concept's numbers are the same whatever concepts it is trained beside. The bar is of those
    that aren't in the store.
    """

    def fit_all(missing: Sequence[ConceptSet]) -> Iterator[tuple[ConceptSet, Learnt]]:
        n_missing = sum(map(len, missing))
        with ctx.task(n_missing, f"layer {subject.layer}: {name}", "concepts") as advance:
            for part in missing:
                yield part, fit(part, advance)

    learnt = cached_values(
        concepts.parts(PART_ON_CPU if subject.lm.device.type == "cpu" else PART_ON_GPU),
        lambda part: fitted_io.find(ctx.store, key(part)),
        fit_all,
        lambda part, learnt_part: fitted_io.keep(ctx.store, key(part), learnt_part),
    )
    return [*learnt.values()]


def _edits_config(method: str, n_layers: int, settings: Any) -> Any:
    """Return the settings of LoReFT or LoRA: AxBench's, or smaller ones for a model without its
    layers.
    """
    module = EDITS[method]
    default = module.Config()
    if max(default.layers) >= n_layers:
        default = module.smaller(n_layers)
    return with_settings(default, method, dict((settings or {}).get(method, {})))


def _learn_edits(
    method: str,
    subject: Subject,
    concepts: ConceptSet,
    config: Any,
    ctx: RunContext,
    load_weights: Callable[[], Any],
    chat: bool,
) -> Learnt:
    """Return LoReFT or LoRA of all concepts."""
    concepts.check_texts()
    weights = cache(load_weights)

    def fit(part: ConceptSet, advance: Callable[..., None]) -> Learnt:
        labelled = label(subject, part.concepts, chat)
        task = Task(subject, part.concepts, labelled, ctx.memory_budget // 2, advance)
        if method == loreft.NAME:
            return loreft.learn(task, config, ctx.seed)
        return lora.learn(task, config, ctx.seed, weights())

    key = partial(_key, subject, name=method, config=config, ctx=ctx, chat=chat)
    parts = _in_parts(subject, concepts, method, ctx, key, fit)
    return loreft.join_loreft(parts) if method == loreft.NAME else lora.join_lora(parts)


def _together(parts: Sequence[Fitted]) -> Fitted:
    """Return several features at once, each with an equal share of the factor, at its own
    largest activation: one direction, because all that is added is their sum.
    """
    largest_CN = torch.tensor([part.detection.max_activation_C for part in parts]).T
    vectors_CND = torch.stack([part.directions.vectors_CD for part in parts], dim=1)
    mean_C = largest_CN.mean(dim=1)
    share_CN = largest_CN / (len(parts) * mean_C[:, None])
    vectors_CD = (share_CN[..., None] * vectors_CND).sum(dim=1)
    nothing: list[float | None] = [None] * len(mean_C)
    return Fitted(TOGETHER, Directions(vectors_CD), Detection(nothing, mean_C.tolist()))
