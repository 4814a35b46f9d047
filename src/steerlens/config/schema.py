"""The schema of every configuration group.

Hydra composes YAML into these dataclasses, so a key that is not here is refused. `Any` marks
values that OmegaConf can't type (unions with containers); `steerlens.config.parse` gives them
their one meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"


@dataclass
class ModelConfig:
    """A language model: a Hugging Face name or a local folder."""

    name: str = MISSING
    """Name of this entry; SAEs name the model they belong to by it."""
    path: str = MISSING
    """Hugging Face repository, or a folder in the Hugging Face layout."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    aliases: list[str] = field(default_factory=list)
    """Other names by which SAE releases call this model."""
    n_layers: int | None = None
    """Number of blocks, so that `layer` can be checked before weights are loaded."""
    d_model: int | None = None
    """Width of the residual stream."""
    d_vocab: int | None = None
    """Number of tokens in the vocabulary."""
    n_params: float | None = None
    """Number of parameters, so that weights that can't fit are refused before download."""
    late_from: int | None = None
    """First of the `late` layers; null = round(0.6 n_layers)."""
    license_url: str | None = None
    """Page on which the licence of gated weights is accepted."""


@dataclass
class SaeConfig:
    """An SAE release: SAELens' release and id, or a local folder in the SAELens layout."""

    name: str = MISSING
    """Name of this entry."""
    release: str | None = None
    """SAELens release name (`steerlens list releases`)."""
    sae_id: str | None = None
    """SAELens id inside the release; `{layer}` stands for the layer."""
    path: str | None = None
    """Folder with one SAE (cfg.json), or with one sub-folder per layer."""
    model: str | None = None
    """Name of the `model` entry that this release was trained on; null = what the SAE says."""
    layers: list[int] | None = None
    """Layers that the release has; null = every layer of the model."""
    d_sae: int | None = None
    """Number of features, for the plan before the weights are there."""


@dataclass
class FeaturesConfig:
    """Which features to score. At most one of `ids`, `n`, `file`, `concept`; none = all."""

    ids: Any = None
    """Explicit ids, the same in every layer: `[1,2,3]`."""
    n: int | None = None
    """This many random features in each layer, drawn from `seed` and the layer."""
    file: str | None = None
    """JSON file `{"layer": [ids]}`."""
    concept: Any = None
    """The features that may stand for this word or phrase."""
    top_k: int = 20
    """Of a feature's logit-lens tokens, how many are compared with the concept's."""
    examples: list[str] = field(default_factory=list)
    """Sentences about the concept: features that fire on them are candidates, too."""
    min_examples: int | None = None
    """Of all or random features, only those that fire in at least so many pieces of the corpus."""


OPERATORS = ("add", "clamp", "min_clamp", "ablate")
UNITS = ("a_max", "max_activation", "norm", "one")
POSITIONS = ("last", "all", "generated", "prompt")
RANDOM_DIRECTION = "random_direction"
RANDOM_FEATURE = "random_feature"
CONTROLS = (RANDOM_DIRECTION, RANDOM_FEATURE)
RULES = ("paper", "budget")
SUCCESS = ("success_20", "success_5", "success_1", "concept_success")


OBJECTIVES = {
    "mean_output_score": False,
    "mean_input_score": False,
    "output_features": False,
    "hybrid_ratio": False,
    "success": True,
    "success_per_perplexity": True,
    "concept_success": True,
    "payoff": True,
}
"""What `objective` can be (see `analysis.objectives`), and whether it needs steered texts."""


@dataclass
class SteerConfig:
    """How features are steered with. Without factors nothing is steered."""

    factors: Any = None
    """Steering factors s: `[0.5,2,8]`; 0, no steering, always comes along."""
    operator: str = "add"
    """add: `a + s u`; clamp: `s u`; min_clamp: `max(a, s u)`; ablate: `(1 - s) a`."""
    unit: str = "a_max"
    """u: a_max (the largest activation at the position, as in the paper), max_activation (the
    feature's own maximum over the corpus, as in AxBench), norm (the residual's), or one."""
    keep_error: bool = True
    """Keep the SAE's reconstruction error (the authors' code) or drop it (the paper's Eq. 6)."""
    positions: str = "last"
    """last (the prompt's last and every new one, as the authors), all (as AxBench), generated or
    prompt."""
    default_max_activation: float | None = None
    """For unit=max_activation, of a feature that never fires; null = the median of the others
    (AxBench has 50)."""
    search: bool = False
    """Generate texts at every third factor, then only around each feature's best one."""
    controls: list[str] = field(default_factory=list)
    """What is steered with beside each feature: random_direction, or random_feature, another one's
    decoder row, perhaps of one that never fires; both at the norm of the feature's own."""
    together: list[int] = field(default_factory=list)
    """Also steer with the n best features of a layer at once, by selection.score, each with an
    equal share of the factor: `[2,5]`."""


@dataclass
class SelectionConfig:
    """Which of the scored features are steered with; without `threshold` and `top_n`, all."""

    score: str = "output_score"
    """A column of features.parquet."""
    threshold: float | None = None
    """At least this much of it."""
    top_n: int | None = None
    """Only the n best of the run, all layers together."""


@dataclass
class GenerationConfig:
    """How texts are continued."""

    prompts: Any = None
    """Beginnings of texts; null = 50 neutral ones."""
    n_prompts: int | None = None
    """Only the first n of them."""
    samples: int = 1
    """Texts for each prompt."""
    max_new_tokens: int = 20
    temperature: float = 0.7
    """0 is greedy."""
    top_k: int | None = None
    """Only the k most probable tokens."""
    top_p: float | None = None
    """Only the most probable tokens that together have this probability."""
    stop: Any = "."
    """A text ends with the token that completes this string, or one of these; null = none. The
    authors' code stops at the first full stop, the paper doesn't say so."""
    chat_template: bool = False
    """Put prompts into the model's chat template; the authors steer on the raw instruction."""
    batch_size: int | None = None
    """Texts at a time; null = what fits in memory_budget. Changes no text."""


@dataclass
class CorpusConfig:
    """Texts for the scores that need some."""

    name: str = MISSING
    """Name of this entry."""
    source: str = MISSING
    """embedded (the installation's own documentation), webtext (NLTK's), text, json, parquet or
    hub."""
    path: str | None = None
    """File, or Hugging Face data set."""
    subset: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    column: str = "text"
    """Where the text is in a row."""
    n_tokens: int | None = None
    """Read this many tokens; null = all."""
    context_length: int = 128
    """Documents are cut into pieces of this many tokens, BOS included, or of as many as the model
    can take."""
    seed: int | None = None
    """Shuffles the documents; null = in their order."""


@dataclass
class ChoiceConfig:
    """The right steering factor of every feature, from its texts at all factors."""

    rule: str = "paper"
    """paper (most success per perplexity, below a cap; Section 4.1) or budget (most success within
    a budget of perplexity)."""
    success: str = "success_20"
    """What counts as success: success_20 (the paper), success_5, success_1, or concept_success."""
    success_cap: float = 3.0
    """rule=paper: factors whose mean success is over this are dropped."""
    perplexity_budget: float = 2.0
    """rule=budget: mean perplexity allowed, times the mean of the feature's factor-0 texts."""
    split: bool = False
    """Choose the factor on one half of the prompts and report its means on the other half."""


@dataclass
class PmiConfig:
    """How success tokens and the first logit-lens token are counted in the corpus (Figure 8)."""

    window: int = 20
    """Words in a window: as many as the paper's continuations have tokens."""
    min_count: int = 10
    """Each word of a pair is in at least this many windows."""
    min_together: int = 3
    """Both are in at least this many windows; at least 1, because none gives no number."""


@dataclass
class QualityConfig:
    """How well the SAEs reconstruct the corpus."""

    n_tokens: int | None = None
    """Tokens of the corpus that are encoded and decoded; null = none."""


@dataclass
class CoverageConfig:
    """For how many words an SAE has a feature that steers toward them."""

    words: Any = None
    """`[network,date]`, or a file with a word a line; null = none. Each shard does a part."""
    top_k: int = 20
    """Of a feature's logit-lens tokens, how many are compared with the word's."""
    threshold: float = 0.1
    """Only features with at least this output score toward the word are steered with."""


STUDIES = ("releases", "sizes", "controls", "criteria", "table1")


@dataclass
class StudyConfig:
    """The question that a run, or the sweep that it belongs to, is to answer."""

    name: str | None = None
    """One of the modules of `studies/`; null = none."""
    by_depth: bool = False
    """releases: also compare those of different models, layer by relative depth."""


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
    factors: str | None = None
    ratings: str | None = None
    """Folder with the published ratings of steered texts: a table of them, alone."""
    alone: bool = False
    """Show the published scores as a run of their own: no model is loaded, nothing is scored."""


JUDGES = ("lexical", "openai", "anthropic", "local")


@dataclass
class JudgeConfig:
    """Who rates the steered texts. Nothing here holds a key: keys come from the environment."""

    name: str = MISSING
    """lexical (no model), openai (any OpenAI-compatible server), anthropic, or local (a Hugging
    Face model in this process)."""
    model: str | None = None
    """The judge's model; for local a Hugging Face name or a folder."""
    base_url: str | None = None
    """openai, anthropic: another server, `http://127.0.0.1:8000/v1`, say; null = OPENAI_BASE_URL
    or ANTHROPIC_BASE_URL, else the client's own."""
    key_variable: str | None = None
    """The environment variable with the key; null = OPENAI_API_KEY or ANTHROPIC_API_KEY."""
    budget_usd: float | None = None
    """What all answers of the run may cost, those of its earlier starts included. A request that
    a server charges for without answering (a timeout, a killed run) can't be counted."""
    usd_per_million_input: float | None = None
    """Price of a million tokens read; null = as in `judges/prices.json`."""
    usd_per_million_output: float | None = None
    concurrency: int = 8
    """Requests under way at once; local: prompts in a batch."""
    timeout: float = 60.0
    """Seconds for one request."""
    retries: int = 5
    """Times that the client repeats a request after 429, 5xx, a timeout or a lost connection,
    waiting longer each time."""
    attempts: int = 3
    """Times that the judge is asked for a rating that can be read."""
    max_tokens: int = 512
    """Longest answer."""
    temperature: float | None = None
    """null = the server's own; local is always greedy."""
    unparsable_is_zero: bool = False
    """Count an answer without a rating as 0 (AxBench), instead of as missing."""


CONCEPT_SOURCES = ("embedded", "folder", "hub")
INSTRUCTIONS = ("alpaca_eval", "genre", "released")
STEERED_BY = (
    *("SAE", "SAE together", "SAE-A", "DiffMean", "Probe", "PCA", "LAT", "SSV", "ReFT-r1"),
    *("LoReFT", "LoRA", "Prompt", "Random"),
)
"""The methods that a concept can be steered by (see `baselines/`)."""


@dataclass
class ConceptsConfig:
    """Concepts to steer toward by several methods, compared by a judge (AxBench)."""

    name: str = MISSING
    """Name of this entry."""
    source: str = MISSING
    """embedded (topics of the installed documentation), folder (in AxBench's layout) or hub."""
    path: str | None = None
    """The folder, or the data set on the hub; `{layer}` stands for the layer."""
    subset: str | None = None
    """hub: part of the data set, `9b/l{layer}`."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    only: list[str] = field(default_factory=list)
    """Names of concepts; [] = all."""
    n: int | None = None
    """Only the first n of them."""
    n_train: int = 72
    """embedded: positives to train on, and as many negatives (AxBench)."""
    n_test: int = 36
    """embedded: positives to test detection on, and as many negatives (AxBench)."""
    n_prompts: int = 10
    """Prompts of a concept: half of them choose the factor, half evaluate (AxBench)."""
    instructions: str = "alpaca_eval"
    """folder, hub: alpaca_eval (AxBench), genre (the paper), or released by the paper's authors."""
    instructions_path: str | None = None
    """Files of instructions instead of the hub's; needed for released."""
    methods: list[str] = field(default_factory=lambda: list(STEERED_BY))
    """What steers: names in `STEERED_BY`."""
    settings: Any = None
    """Settings of methods other than AxBench's for Gemma-2-2B: `{ReFT-r1: {lr: 5e-3}}`."""
    features: int = 1
    """SAE, where concepts name no feature: so many for each, those that detect it best."""
    together: int = 3
    """SAE together: so many features at once, those that detect the concept best."""


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: str = "offline"
    """offline, online or disabled."""
    project: str = "steerlens"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    """Name of the W&B run; null = the name of the run's folder."""
    tags: list[str] = field(default_factory=list)


@dataclass
class PathsConfig:
    output_dir: str = MISSING
    """This run's folder; by default Hydra's, under outputs/<name>/."""
    cache_dir: str = MISSING
    """Cache that runs share."""


@dataclass
class RunConfig:
    """The whole configuration of one run."""

    name: str = "run"
    """Name of the folder under outputs/."""
    concept: Any = None
    """What to steer toward: a word or a phrase, or several for the same. Chooses
    `experiment=concept` on the command line."""
    layer: Any = "all"
    """An integer, a list of integers, `all` or `late`."""
    seed: int = 0
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
    plan: bool = False
    """Print what would run, and stop."""
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
    score: Any = MISSING
    """One scoring method's settings (`method: output, ...`), or several by name."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    pmi: PmiConfig = field(default_factory=PmiConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    coverage: CoverageConfig = field(default_factory=CoverageConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    concepts: ConceptsConfig | None = None
    """Concepts to steer toward by several methods; null = none."""
    judge: JudgeConfig | None = None
    """Who rates the texts that are to show `concepts`; null = nobody."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
