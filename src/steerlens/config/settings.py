"""The settings of a run, each value parsed once: what the rooms below `runs/` are given.

A `RunConfig` holds what was written; `parse_settings` gives every value its one meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from steerlens.config.kinds import PUBLISHED, Kind, kind_of
from steerlens.config.parse import (
    layer_numbers,
    parse_concept,
    parse_ids,
    parse_memory,
    parse_scores,
    parse_shard,
    parse_words,
)
from steerlens.config.registry import ScoreConfig
from steerlens.config.schema import (
    ChoiceConfig,
    ConceptsConfig,
    CorpusConfig,
    CoverageConfig,
    EvaluateConfig,
    FeaturesConfig,
    GenerationConfig,
    JudgeConfig,
    LensConfig,
    ModelConfig,
    PmiConfig,
    ReferenceConfig,
    RunConfig,
    SaeConfig,
    SelectionConfig,
    SteerConfig,
    TowardConfig,
)
from steerlens.config.sources import counts_need_a_pass, reads_corpus, shipped_examples
from steerlens.config.steering import parse_factors, parse_prompts, shares_of, with_template
from steerlens.errors import SteerlensError


class Shard(NamedTuple):
    """A part of each layer's features: the part `index`, counted from 0, of `of` equal ones."""

    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


@dataclass(frozen=True)
class SubjectSettings:
    """A model, its SAEs, and where and how they are loaded."""

    model: ModelConfig
    sae: SaeConfig
    layers: tuple[int, ...] | str
    """Numbers in rising order, or `all` or `late`."""
    device: str
    """auto, or a torch device."""
    dtype: str
    """auto, float32, float16 or bfloat16."""
    device_map: str | dict[str, Any] | None
    memory_budget: int
    """Bytes that work may use beyond the weights."""
    cache_dir: Path

    def of_layers(self, layers: Iterable[int]) -> SubjectSettings:
        """Give the same subject at these layers alone."""
        return replace(self, layers=tuple(sorted(set(layers))))


@dataclass(frozen=True)
class SteeringSettings:
    """What features are steered with, how texts go on, and how a factor is chosen by them."""

    factors: tuple[float, ...]
    """In rising order, without 0; () steers with nothing."""
    steer: SteerConfig
    generation: GenerationConfig
    prompts: tuple[str, ...]
    """Beginnings of texts, or with a chat template the requests, each once."""
    choice: ChoiceConfig
    concept: tuple[str, ...] = ()
    """The names of what is steered toward; () for no concept."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The settings of metrics by their names; the others' are their defaults."""
    shares: Mapping[int, float] = field(default_factory=dict)
    """Features that are also steered with at once, and each one's share of the factor."""

    @property
    def concept_label(self) -> str | None:
        """Give the concept as tables name it; None for no concept."""
        return ", ".join(self.concept) or None

    def for_model(self, has_template: bool, model: str) -> SteeringSettings:
        """Decide `chat_template=auto` for a model, which tells what the prompts are.

        Args:
            has_template: whether its tokenizer has a chat template.
            model: its name.

        Raises:
            SteerlensError: a template is asked of a model without one.
        """
        generation = with_template(self.generation, has_template, model)
        return replace(self, generation=generation, prompts=tuple(parse_prompts(generation)))


@dataclass(frozen=True)
class Settings:
    """All that one run is asked for."""

    kind: Kind
    """Which stages it has."""
    subject: SubjectSettings
    seed: int
    corpus: CorpusConfig
    lens: LensConfig
    """What tells the tokens that a feature promotes."""
    shipped_examples: str | None
    """File of examples of the SAE that stands for the corpus."""
    counts_need_a_pass: bool
    """Whether `features.min_examples` has to read the corpus."""
    reads_corpus: bool
    """Whether anything may read the corpus."""
    quality_tokens: int | None
    """Tokens of the corpus on which the SAEs' reconstruction is measured."""
    features: FeaturesConfig
    features_concept: tuple[str, ...]
    """The names of the concept that the features may stand for; () for none."""
    shard: Shard | None
    labels: str | None
    scores: Mapping[str, ScoreConfig]
    """By the name of each scoring method."""
    logit_lens_k: int
    describes_features: bool
    """Whether the tables that only `report.html` shows are written."""
    selection: SelectionConfig
    steering: SteeringSettings
    evaluator: ModelConfig | None
    coverage: CoverageConfig
    coverage_words: tuple[str, ...]
    toward: TowardConfig
    toward_words: tuple[str, ...]
    evaluate: EvaluateConfig
    pmi: PmiConfig
    concepts: ConceptsConfig | None
    judge: JudgeConfig | None
    reference: ReferenceConfig
    overruled: tuple[str, ...]
    """Sentences on values of options which the experiment sets otherwise."""

    @property
    def loads_subject(self) -> bool:
        """Whether the run loads its model and SAEs: not for published numbers alone."""
        return self.kind is not PUBLISHED

    @property
    def concepts_looked_up(self) -> list[tuple[str, ...]]:
        """The names of every concept whose tokens the run looks up in the model's vocabulary."""
        of_scores = [score.looks_up() for score in self.scores.values()]
        parsed = [tuple(parse_concept(concept)) for concept in of_scores if concept is not None]
        every = (self.features_concept, self.steering.concept, *parsed)
        return [names for names in dict.fromkeys(every) if names]

    @property
    def warnings(self) -> list[str]:
        """Say what of the settings works but is hardly meant, in sentences."""
        lines = [line for method in self.scores.values() for line in method.warnings()]
        lines += self.overruled
        n_chosen, n_prompts = self.steering.generation.n_prompts, len(self.steering.prompts)
        if self.steering.factors and self.concepts is None and (n_chosen or 0) > n_prompts:
            lines.append(
                f"generation.n_prompts={n_chosen} is more than the {n_prompts} of "
                "generation.prompts: all of them are used."
            )
        return lines

    @property
    def cache_dir(self) -> Path:
        """Give the folder of the cache."""
        return self.subject.cache_dir


def parse_subject(config: RunConfig) -> SubjectSettings:
    """Parse what says which model and SAEs are loaded, and how.

    Raises:
        SteerlensError: a value has no meaning.
    """
    numbers = layer_numbers(config.layer)
    return SubjectSettings(
        model=config.model,
        sae=config.sae,
        layers=config.layer if numbers is None else tuple(numbers),
        device=config.device,
        dtype=config.dtype,
        device_map=config.device_map,
        memory_budget=parse_memory(config.memory_budget),
        cache_dir=Path(config.paths.cache_dir),
    )


def parse_steering(config: RunConfig) -> SteeringSettings:
    """Parse what says how features are steered with.

    With `chat_template=auto` the prompts are as many as there will be; `for_model` decides which.

    Raises:
        SteerlensError: a value has no meaning.
    """
    return SteeringSettings(
        factors=tuple(parse_factors(config.steer.factors)),
        steer=config.steer,
        generation=config.generation,
        prompts=tuple(parse_prompts(config.generation)),
        choice=config.choice,
        concept=() if config.concept is None else tuple(parse_concept(config.concept)),
        metrics=config.metrics,
        shares=_shares(config),
    )


def _shares(config: RunConfig) -> dict[int, float]:
    """Return the shares that `steer.weights` gives to the features of `features.ids`."""
    weights = config.steer.weights
    if not weights:
        return {}
    if config.features.ids is None or config.shard is not None or config.toward.words is not None:
        raise SteerlensError(
            "steer.weights is of the features of features.ids, all of them, as in "
            "'features.ids=[5,9] steer.weights=[1,-0.5]'; it can't go with a shard or toward.words."
        )
    ids = parse_ids(config.features.ids)
    return dict(zip(ids, shares_of(weights, len(ids), "steer.weights"), strict=True))


def parse_settings(config: RunConfig) -> Settings:
    """Parse all settings of a run, each once.

    Raises:
        SteerlensError: a value has no meaning, in one sentence.
    """
    concept = config.features.concept
    return Settings(
        kind=kind_of(config),
        subject=parse_subject(config),
        seed=config.seed,
        corpus=config.corpus,
        lens=config.lens,
        shipped_examples=shipped_examples(config),
        counts_need_a_pass=counts_need_a_pass(config),
        reads_corpus=reads_corpus(config),
        quality_tokens=config.quality.n_tokens,
        features=config.features,
        features_concept=() if concept is None else tuple(parse_concept(concept)),
        shard=None if config.shard is None else Shard(*parse_shard(config.shard)),
        labels=config.labels,
        scores=parse_scores(config.score),
        logit_lens_k=config.logit_lens_k,
        describes_features=config.paths.report is not False,
        selection=config.selection,
        steering=parse_steering(config),
        evaluator=config.evaluator,
        coverage=config.coverage,
        coverage_words=tuple(parse_words(config.coverage.words)),
        toward=config.toward,
        toward_words=tuple(parse_words(config.toward.words, "toward.words")),
        evaluate=config.evaluate,
        pmi=config.pmi,
        concepts=config.concepts,
        judge=config.judge,
        reference=config.reference,
        overruled=config.chosen.overruled,
    )
