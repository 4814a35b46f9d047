"""Groups that say how texts are steered, and what is made of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache
from typing import Any

EARLIER_UNITS = {"one": "raw"}
"""Names of `steer.unit` today, by their earlier ones, which are understood for one release."""
POSITIONS = ("last", "all", "generated", "prompt")
RANDOM_DIRECTION = "random_direction"
RANDOM_FEATURE = "random_feature"
CONTROLS = (RANDOM_DIRECTION, RANDOM_FEATURE)
SUCCESS = ("success_20", "success_5", "success_1", "concept_success")
JUDGE = "judge"
"""The rule that chooses by ratings."""
OBJECTIVES = {
    "mean_output_score": False,
    "mean_input_score": False,
    "output_features": False,
    "hybrid_ratio": False,
    "success": True,
    "success_per_perplexity": True,
    "concept_success": True,
    "payoff": True,
    "payoff_within_layers": True,
}
"""What `objective` can be (see `analysis.objectives`), and whether it needs steered texts."""

logger = logging.getLogger(__name__)


@cache
def unit_of_today(unit: str) -> str:
    """Give the present name of a unit; an earlier one is told, once."""
    if unit not in EARLIER_UNITS:
        return unit
    today = EARLIER_UNITS[unit]
    logger.warning("steer.unit=%s is called %s now: write steer.unit=%s.", unit, today, today)
    return today


@dataclass
class SteerConfig:
    """How features are steered with. Without factors nothing is steered."""

    factors: Any = None
    """Steering factors s: `[0.5,2,8]`; 0, no steering, always comes along."""
    operator: str = "add"
    """add: `a + s u`; clamp: `s u`; min_clamp: `max(a, s u)`; ablate: `(1 - s) a`."""
    unit: str = "a_max"
    """u: a_max (the largest activation at the position, as in the paper), max_activation (the
    feature's own maximum over the corpus, as in AxBench), norm (the residual's), or raw (1)."""
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
    weights: list[float] = field(default_factory=list)
    """Also steer with the features of features.ids at once, each with its weight's part of the
    factor: `[1,-0.5]`. The first one's tokens count as success."""

    def __post_init__(self) -> None:
        self.unit = unit_of_today(self.unit)


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
    """Beginnings of texts, or requests inside a chat template; null = 50 neutral ones."""
    n_prompts: int | None = None
    """Only the first n of them."""
    samples: int = 1
    """Texts for each prompt."""
    max_new_tokens: int = 20
    """Longest continuation, in tokens."""
    temperature: float = 0.7
    """0 is greedy."""
    top_k: int | None = None
    """Only the k most probable tokens."""
    top_p: float | None = None
    """Only the most probable tokens that together have this probability."""
    stop: Any = "."
    """A text ends with the token that completes this string, or one of these; null = none. The
    authors' code stops at the first full stop, the paper doesn't say so."""
    chat_template: Any = False
    """Put prompts into the model's chat template, as the user's turn: true, false (the authors
    steer on the raw instruction), or auto, where the model has one."""
    batch_size: int | None = None
    """Texts at a time; null = what fits in memory_budget. Changes no text."""


@dataclass
class ChoiceConfig:
    """The right steering factor of every feature, from its texts at all factors."""

    rule: str = "paper"
    """paper (most success per perplexity, below a cap; Section 4.1), most success within a budget:
    budget and perplexity_ratio (of perplexity), kl (of divergence from the unsteered model), dose
    (of the change's length); or judge (highest mean rating on one half of the prompts, reported on
    the other, as AxBench)."""
    success: str = "success_20"
    """What counts as success: success_20 (the paper), success_5, success_1, or concept_success."""
    success_cap: float = 3.0
    """rule=paper: factors whose mean success is over this are dropped."""
    perplexity_budget: float = 2.0
    """rule=budget: mean perplexity allowed, times the mean of the feature's factor-0 texts."""
    perplexity_ratio: float = 1.5
    """rule=perplexity_ratio: mean perplexity allowed, times the mean of the feature's factor-0
    texts."""
    kl_budget: float = 1.0
    """rule=kl: mean `kl` allowed, in nats a token."""
    dose_budget: float = 0.7
    """rule=dose: mean `relative_dose` allowed."""
    split: bool = False
    """Choose the factor on one half of the prompts and report its means on the other half;
    rule=judge always does."""

    @property
    def splits(self) -> bool:
        """Whether the factor is chosen on other prompts than its means are of."""
        return self.split or self.rule == JUDGE
