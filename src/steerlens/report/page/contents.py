"""What a page holds, as typed data: the builders fill it, the browser shows it.

Every text in here is already safe to look at (`results.text`); none of it is markup. What a run
has nothing for is None or empty, and the page has no section for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Numbers = Sequence[float | int | None]


@dataclass(frozen=True)
class KeyNumber:
    """A number that a reader looks for first."""

    value: str
    meaning: str
    beside: str
    """What it is to be compared with; may be empty."""


@dataclass(frozen=True)
class Overview:
    """The top of a page."""

    kind: str
    """`run`, `sweep` or `comparison`."""
    question: str
    """What was run, in a sentence."""
    sentences: Sequence[str]
    """What came out."""
    notes: Sequence[str]
    """What a reader has to know before any number."""
    state: str
    """`done`, or how far the run has come."""
    command: str | None
    """What repeats the run; null = not known."""
    facts: Sequence[tuple[str, str]]
    """Model, SAE, versions and so on, by name."""
    key_numbers: Sequence[KeyNumber] = ()


@dataclass(frozen=True)
class NumberColumn:
    """A score of every feature."""

    name: str
    title: str
    meaning: str
    values: np.ndarray
    """(n,), float32 where that changes no number, else float64; NaN = null."""


@dataclass(frozen=True)
class FeatureTable:
    """All n features, column by column; arrays go into the page as their bytes, which a browser
    reads many times as fast as the digits of so many numbers.
    """

    layer: np.ndarray
    """(n,)"""
    feature: np.ndarray
    """(n,)"""
    numbers: Sequence[NumberColumn]
    """The one that ranks the features first."""
    tokens: Sequence[str]
    """The different promoted tokens, of the logit lens."""
    promoted: np.ndarray
    """(n * n_promoted,), indices into `tokens`, the strongest first; `len(tokens)` = none."""
    n_promoted: int
    labels: Sequence[str | None] | None
    steered: np.ndarray
    """Rows of the features that were steered with."""
    lens: str | None
    """What tells the tokens by which the run's scores know a feature; None = the logit lens."""


@dataclass(frozen=True)
class LayerScores:
    """One score in one layer, of features or of random directions."""

    layer: int
    score: str
    n: int
    mean: float
    p90: float
    at_least_001: float
    at_least_01: float


@dataclass(frozen=True)
class ThresholdPoint:
    """Success of the features over a threshold of the output score, beside as many at random."""

    threshold: float
    selected: int
    success: float | None
    success_low: float | None
    success_high: float | None
    random: float | None
    random_within_layers: float | None
    payoff: float | None
    payoff_low: float | None
    payoff_high: float | None
    payoff_within_layers: float | None
    payoff_within_layers_low: float | None
    payoff_within_layers_high: float | None


@dataclass(frozen=True)
class Window:
    """A text that a feature fires on: its tokens, and how strongly on each (0 to 1)."""

    tokens: Sequence[str]
    activations: Sequence[float]
    maximum: float | None
    """The activation at the peak; null = not known."""


Segment = tuple[str, int]
"""A part of a text, and what it is: 0 plain, 1 a success token, 2 a token of the concept, 3 both.
"""


@dataclass(frozen=True)
class SteeredText:
    """One text, by indices into the prompts, arms and factors of its feature."""

    prompt: int
    arm: int
    factor: float
    segments: Sequence[Segment]
    perplexity: float | None


@dataclass(frozen=True)
class Arm:
    """Means over the texts of one arm, by factor."""

    name: str
    """`feature`, or what stood in for it."""
    factors: Sequence[float]
    success: Numbers
    concept_success: Numbers
    perplexity: Numbers
    kl: Numbers


@dataclass(frozen=True)
class Steered:
    """What steering with a feature did."""

    concept: str | None
    best_factor: float | None
    safe_range: tuple[float, float] | None
    """The consecutive tried factors around the best one that the rule allows; null without one."""
    why_none: str
    """What to say where there is no best factor."""
    undecided: bool
    arms: Sequence[Arm]
    prompts: Sequence[str]
    n_prompts: int
    """All prompts, of which `prompts` has the first."""
    texts: Sequence[SteeredText]


@dataclass(frozen=True)
class Neighbour:
    """A feature of the same SAE whose decoder direction is near."""

    feature: int
    cosine: float


@dataclass(frozen=True)
class Card:
    """What is known of one feature beside its row of the table; what is empty isn't written."""

    promoted: Sequence[str]
    """Tokens of the logit lens, which success counts and texts have marked."""
    promoted_logits: Numbers | None
    by_lens: Sequence[str]
    """Tokens by which the run's scores know it, where another lens tells them."""
    suppressed: Sequence[str]
    suppressed_logits: Numbers | None
    windows: Sequence[Window]
    marked: Sequence[str]
    """Texts of which only the peak is known, which stands in «marks»; where there are no windows.
    """
    histogram: Sequence[int]
    histogram_range: float | None
    frequency: float | None
    neighbours: Sequence[Neighbour]
    url: str | None
    steered: Sequence[Steered]


@dataclass(frozen=True)
class Candidate:
    """A feature that may stand for a concept, and why it was chosen or not."""

    layer: int
    feature: int
    tokens: Sequence[str]
    toward: float | None
    output_score: float | None
    best_factor: float | None
    success: float | None
    unsteered: float | None
    perplexity: float | None
    why: str
    is_best: bool


@dataclass(frozen=True)
class Concept:
    """A concept that features were looked for."""

    concept: str
    tokens: Sequence[str]
    is_found: bool
    sentence: str
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class RatedArm:
    """A method's rating in one layer, with its interval over concepts."""

    method: str
    layer: int
    value: float
    low: float | None
    high: float | None
    concepts: int | None


@dataclass(frozen=True)
class RatedText:
    """A text with its ratings."""

    method: str
    layer: int
    concept: str
    prompt: str
    factor: float
    text: str
    ratings: Sequence[tuple[str, float | int | None]]


@dataclass(frozen=True)
class Ratings:
    """Table 1: methods by layer, of one judge and aggregation after the other."""

    tables: Mapping[str, Sequence[RatedArm]]
    texts: Sequence[RatedText]
    n_texts: int
    """All rated texts, of which `texts` has some of each method."""


@dataclass(frozen=True)
class PlainTable:
    """Cells that are texts already."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Drawn:
    """A figure of a study."""

    title: str
    png: str
    """The file, as the address of an image has it."""


@dataclass(frozen=True)
class SeriesScores:
    """One of several results that are laid over each other."""

    label: str
    layers: Sequence[LayerScores]
    thresholds: Sequence[ThresholdPoint]


@dataclass(frozen=True)
class Page:
    """All that one page shows."""

    title: str
    overview: Overview
    features: FeatureTable | None = None
    ranked_by: str | None = None
    layers: Sequence[LayerScores] = ()
    thresholds: Sequence[ThresholdPoint] = ()
    concepts: Sequence[Concept] = ()
    ratings: Ratings | None = None
    tables: Sequence[PlainTable] = ()
    figures: Sequence[Drawn] = ()
    series: Sequence[SeriesScores] = ()
    live: Any = None
    """What a served page has to know to ask its server (`report.play.Live`); null from disk."""


def plain(value: Any) -> float | int | None:
    """Give a number as JSON has it, to 4 digits; None for null, NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or value in (float("inf"), float("-inf")):
        return None
    return value if isinstance(value, int) else float(f"{value:.4g}")
