"""What a run's forwards cost, from the shapes of its model and SAEs alone: no weights are needed.

Matrix products are counted, 2 FLOPs for a weight and a token; attention over a text, norms and
sampling are left out. `experiments.paper.cost` says which share of a machine's products our
benchmarks reach.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from steerlens.config.schema import ModelConfig, SaeConfig
from steerlens.config.settings import Settings
from steerlens.report.terminal import duration

PROMPT, NEW = 6, 20
"""Tokens of a text, unless said; fewer new ones where a full stop ends it."""
EXAMPLE = 64
"""Tokens of a text that a feature fires on."""
BACKWARD = 3
"""A forward with its backward pass, in forwards."""
RATES = {"1 TFLOP/s": 1e12, "100 TFLOP/s": 1e14}
"""Of matrix products: some cores, and a server's GPU in bfloat16."""


class Flops(NamedTuple):
    """Of one output score (mean over layers), one token of the corpus through some layers' SAEs,
    one steered text, and its perplexity.
    """

    score: float
    token: float
    text: float
    perplexity: float


def weights(model: ModelConfig, untied: Collection[str] = ()) -> tuple[float, float] | None:
    """Return (weights of all blocks, weights of the unembedding); None where nothing tells."""
    if not (model.n_params and model.d_vocab and model.d_model):
        return None
    unembedding = model.d_vocab * model.d_model
    return model.n_params - unembedding * (2 if model.name in untied else 1), unembedding


def flops(
    model: ModelConfig,
    sae: SaeConfig,
    evaluator: ModelConfig | None,
    n_saes: int,
    n_new: int = NEW,
    untied: Collection[str] = (),
) -> Flops | None:
    """Return what the pieces of a run take; None where nothing tells the shapes.

    The edited position passes the blocks above the hook, half of them on average, and is
    unembedded; the feature's own tokens take another unembedding.

    Args:
        model: the steered one.
        sae: one of its SAEs.
        evaluator: the model whose perplexity is measured; None = the steered one.
        n_saes: how many SAEs read the corpus.
        n_new: tokens that are generated.
        untied: names of models whose unembedding isn't their embedding.
    """
    of_model, of_evaluator = weights(model, untied), weights(evaluator or model, untied)
    if not (of_model and of_evaluator and model.n_layers and sae.d_sae and model.d_model):
        return None
    blocks, unembedding = of_model
    of_sae = sae.d_sae * model.d_model
    above = blocks * (model.n_layers - 1) / (2 * model.n_layers)
    return Flops(
        score=2 * (above + 2 * unembedding),
        token=2 * (blocks + n_saes * of_sae),
        text=2 * ((PROMPT + n_new) * (blocks + unembedding) + n_new * of_sae),
        perplexity=2 * (PROMPT + n_new) * sum(of_evaluator),
    )


def price(
    settings: Settings, n_features: int, n_layers: int, n_texts: int
) -> dict[str, float] | None:
    """Return the FLOPs of a run's forwards by what they are for, the most first; None where nothing
    tells the shapes.

    Args:
        settings: the run's.
        n_features: how many are scored, of all layers together.
        n_layers: how many layers they are of.
        n_texts: how many texts are steered.
    """
    model, sae = settings.subject.model, settings.subject.sae
    n_new = settings.steering.generation.max_new_tokens
    each = flops(model, sae, settings.evaluator, n_layers, n_new)
    by_itself = flops(model, sae, None, n_layers, n_new)
    if each is None or by_itself is None:
        return None
    scores = settings.scores
    parts = {name: _of_score(scores[name], n_features, n_layers, settings) for name in scores}
    has_pass = settings.counts_need_a_pass or any(score.corpus_pass() for score in scores.values())
    if settings.corpus.n_tokens and has_pass:
        parts["corpus"] = settings.corpus.n_tokens * each.token
    parts["texts"] = n_texts * each.text
    # The divergence is of the steered model, whoever measures the perplexity.
    parts["perplexity and KL"] = n_texts * (
        each.perplexity + (by_itself.perplexity if settings.evaluator else 0)
    )
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def _of_score(score: Any, n_features: int, n_layers: int, settings: Settings) -> float:
    """Return what a score takes: a position after each of its prompts, texts of its own or labelled
    ones that every layer's SAE reads, or texts that the features fire on, forward and back.
    """
    model, sae = settings.subject.model, settings.subject.sae
    each = flops(model, sae, None, n_layers, getattr(score, "max_new_tokens", NEW))
    if each is None:
        return 0.0
    if hasattr(score, "n_sampled"):
        return score.n_sampled() * (each.text + n_layers * each.perplexity)
    if hasattr(score, "outputs"):
        return n_features * score.max_examples * EXAMPLE * BACKWARD * each.token
    labelled = 0.0
    if hasattr(score, "most_tokens") and (of_layer := flops(model, sae, None, n_saes=1)):
        labelled = n_layers * score.most_tokens() * of_layer.token
    return labelled + n_edited_rows(score, n_features, n_layers) * each.score


def n_prompts_of(score: Any) -> int:
    """Return after how many prompts a score steers each feature; 0 of one that reads texts, its own
    or a corpus's, or only the lens.
    """
    if hasattr(score, "n_sampled"):
        return 0
    return len(score.prompts) if hasattr(score, "prompts") else int(hasattr(score, "prompt"))


def n_edited_rows(score: Any, n_features: int, n_layers: int) -> int:
    """Return how many rows of one position a score steers: a feature's after each prompt, and a
    layer's random directions.
    """
    n_null = n_layers * (getattr(score, "null_directions", 0) or 0)
    return n_features * n_prompts_of(score) + n_null


def price_rows(parts: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return rows of a plan: the FLOPs with what most of them are for, and what time they take."""
    total = sum(parts.values())
    most = [f"{name} {part / total:.0%}" for name, part in parts.items() if part >= total / 100]
    times = [f"{duration(total / rate)} at {name}" for name, rate in RATES.items()]
    return [
        ("forwards", f"{total:.2g} FLOPs by the shapes: {', '.join(most)}"),
        (
            "time",
            f"{', '.join(times)} of matrix products; more is unknown until the weights are here",
        ),
    ]
