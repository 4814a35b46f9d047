"""The schema of every configuration group.

Hydra composes YAML into these dataclasses, so a key that is not here is refused. `Any` marks
values that OmegaConf can't type (unions with containers); `steerlens.config.parse` gives them
their one meaning.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from steerlens.config.registry import loadable_parts
from steerlens.config.schema.concepts import (
    CONCEPT_SOURCES,
    INSTRUCTIONS,
    SLOW_METHODS,
    STEERED_BY,
    WITHOUT_FACTOR,
    ConceptsConfig,
    JudgeConfig,
)
from steerlens.config.schema.missing import MISSING
from steerlens.config.schema.steering import (
    CONTROLS,
    EARLIER_UNITS,
    JUDGE,
    OBJECTIVES,
    POSITIONS,
    RANDOM_DIRECTION,
    RANDOM_FEATURE,
    SUCCESS,
    ChoiceConfig,
    GenerationConfig,
    SelectionConfig,
    SteerConfig,
    unit_of_today,
)
from steerlens.config.schema.subject import FeaturesConfig, ModelConfig, SaeConfig
from steerlens.config.schema.texts import (
    CORPORA,
    LENSES,
    CorpusConfig,
    CoverageConfig,
    EvaluateConfig,
    LensConfig,
    PmiConfig,
    QualityConfig,
    TowardConfig,
)

__all__ = [
    "CONCEPT_SOURCES",
    "CONTROLS",
    "CORPORA",
    "EARLIER_UNITS",
    "INSTRUCTIONS",
    "JUDGE",
    "LENSES",
    "MISSING",
    "OBJECTIVES",
    "POSITIONS",
    "RANDOM_DIRECTION",
    "RANDOM_FEATURE",
    "SLOW_METHODS",
    "STEERED_BY",
    "SUCCESS",
    "WITHOUT_FACTOR",
    "ChoiceConfig",
    "Chosen",
    "ConceptsConfig",
    "CorpusConfig",
    "CoverageConfig",
    "EvaluateConfig",
    "FeaturesConfig",
    "GenerationConfig",
    "JudgeConfig",
    "LensConfig",
    "ModelConfig",
    "PathsConfig",
    "PmiConfig",
    "QualityConfig",
    "ReferenceConfig",
    "RunConfig",
    "SaeConfig",
    "SelectionConfig",
    "SteerConfig",
    "StudyConfig",
    "TowardConfig",
    "TrackingConfig",
    "key_fields",
    "metric_defaults",
    "unit_of_today",
]


@dataclass
class StudyConfig:
    """The question that a run, or the sweep that it belongs to, is to answer."""

    name: str | None = None
    """One of the modules of `studies/`; null = none."""
    by_depth: bool = False
    """releases: also compare those of different models, layer by relative depth."""
    cached_only: bool = False
    """Leave out of the sweep whatever isn't in the hub's cache, and ask the hub for nothing."""


@dataclass
class ReferenceConfig:
    """The published scores that a run is laid beside (the caches of the paper's authors)."""

    path: str | None = None
    """Folder in or below which the files lie, under the authors' names."""
    model: str | None = None
    """gemma2_2b, gemma2_9b, llama31 or pythia70."""
    features: str | None = None
    """File of the listed features, `{"layer": [ids]}`, instead of the one in `path`."""
    input_scores: str | None = None
    """File `{"layer_feature": number}`, instead of the one in `path`."""
    output_scores: str | None = None
    """The same of output scores."""
    factors: str | None = None
    """The same of the best steering factors."""
    ratings: str | None = None
    """Folder with the published ratings of steered texts: a table of them, alone."""
    alone: bool = False
    """Show the published scores as a run of their own: no model is loaded, nothing is scored."""


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: str = "offline"
    """offline, online or disabled."""
    project: str = "steerlens"
    """The project that runs belong to."""
    entity: str | None = None
    """The user or team that the project belongs to; null = your own."""
    group: str | None = None
    """What W&B shows together; null = none, for the jobs of a sweep the sweep's name and time."""
    name: str | None = None
    """Name of the W&B run; null = the name of the run's folder."""
    tags: list[str] = field(default_factory=list)
    """Tags of the W&B run."""


@dataclass
class PathsConfig:
    """Where a run writes."""

    output_dir: str = MISSING
    """This run's folder; by default Hydra's, under outputs/<name>/."""
    cache_dir: str = MISSING
    """Cache that runs share."""
    report: bool | None = None
    """Write `report.html`; null = of a run, and of a sweep's joined result, but not of its jobs."""


@dataclass(frozen=True)
class Chosen:
    """The options whose files a configuration was composed of, as far as they fill it."""

    subject: str | None = None
    experiment: str | None = None
    searchpath: tuple[str, ...] = ()
    """Folders beside ours in which options lie."""
    kind: str | None = None
    """The kind of run that was asked for: see `config.kinds`."""
    refusal: str | None = None
    """Why such a run is refused: it would ignore a setting that somebody has asked for."""
    overruled: tuple[str, ...] = ()
    """Values of options that somebody has typed and the experiment sets otherwise, in sentences."""


def metric_defaults() -> dict[str, Any]:
    """Return the settings of every metric that has some, by its name."""
    configs = {name: part.Config() for name, part in loadable_parts("metrics").items()}
    return {
        name: config for name, config in configs.items() if is_dataclass(config) and fields(config)
    }


@dataclass
class RunConfig:
    """The whole configuration of one run."""

    name: str = "run"
    """Name of the folder under outputs/."""
    concept: Any = None
    """What to steer toward: a word or a phrase, or several for the same. As an override without an
    experiment, typed or in Python, it stands for `experiment=concept concept=WORD`."""
    layer: Any = "all"
    """An integer, a list of integers, `all` or `late`."""
    seed: int = 0
    """Of everything that is drawn at random: features, texts, control directions."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu) or a torch device."""
    dtype: str = "auto"
    """auto (float32 on CPU, else bfloat16), float32, float16 or bfloat16; for model and SAE."""
    device_map: Any = None
    """Hugging Face device map for models larger than one GPU: `auto`, or `{module: device}`."""
    memory_budget: Any = "2GiB"
    """Memory that scoring may use beyond the weights; batch sizes follow from it."""
    labels: str | None = None
    """Neuronpedia's explanations of the features: a JSON Lines file or an export folder."""
    logit_lens_k: int = 20
    """Number of logit-lens tokens kept per feature."""
    shard: str | None = None
    """`i/n`: only part i, counted from 0, of the n equal parts of each layer's features."""
    objective: str | None = None
    """The number that a sweeper optimises: one of `analysis.objectives.OBJECTIVES`."""
    plan: Any = False
    """Print what would run, and stop: true (with what was measured before), measure (times a few
    features and texts first), or false."""
    debug: bool = False
    """Show tracebacks."""

    model: ModelConfig = field(default_factory=ModelConfig)
    sae: SaeConfig = field(default_factory=SaeConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)
    evaluator: ModelConfig | None = None
    """The model whose perplexity of the texts is measured; null = the steered model, unsteered."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    metrics: dict[str, Any] = field(default_factory=metric_defaults)
    """Settings of what texts are measured by, as `metrics.NAME.KEY`."""
    score: Any = MISSING
    """One scoring method's settings (`method: output, ...`), or several by name."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    lens: LensConfig = field(default_factory=LensConfig)
    pmi: PmiConfig = field(default_factory=PmiConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    coverage: CoverageConfig = field(default_factory=CoverageConfig)
    toward: TowardConfig = field(default_factory=TowardConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    concepts: ConceptsConfig | None = None
    """Concepts to steer toward by several methods; null = none."""
    judge: JudgeConfig | None = None
    """Who rates the texts that are to show `concepts`; null = nobody."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    chosen: Chosen = field(default_factory=Chosen, metadata={"omegaconf_ignore": True})
    """What the values were composed of; no key of the configuration."""


def key_fields(kind: type) -> list[Field[Any]]:
    """Return the fields of a dataclass of the schema that are keys of the configuration."""
    return [field for field in fields(kind) if not field.metadata.get("omegaconf_ignore")]
