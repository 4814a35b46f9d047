"""Whether a run reads a corpus of its own, or the examples that ship with its SAE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from steerlens.config.entries import entries
from steerlens.config.parse import parse_scores
from steerlens.config.schema import CorpusConfig, LensConfig, ModelConfig, RunConfig, SaeConfig
from steerlens.config.steering import parse_factors

AUTO, FALLBACK = "auto", "embedded"

N_TEXTS = 100
"""Texts of each feature whose peak ships, the largest activations first."""


def resolve_sources(config: RunConfig) -> None:
    """Decide, in `config` itself, what `corpus=auto` and each score's `source=auto` mean.

    Whoever changes a key of `corpus` wants that text to be read: then it is `corpus=embedded`.
    """
    corpus = config.corpus
    if corpus.name == AUTO:
        if corpus != _entry(AUTO):
            corpus.name = FALLBACK
        if corpus.n_tokens is None:
            corpus.n_tokens = _entry(FALLBACK).n_tokens
    scores = parse_scores(config.score)
    for score in scores.values():
        score.resolve_source(shipped_examples(config), config.sae.examples)
    config.score = scores
    if config.corpus.name == AUTO:
        resolve_lens(config.lens, jacobians_of(config.sae, config.model))


def shipped_examples(config: RunConfig) -> str | None:
    """Return the file of examples that stands for the corpus; None where a corpus is given by
    hand, or the SAE has none.
    """
    return config.sae.examples if config.corpus.name == AUTO else None


def jacobians_of(sae: SaeConfig, model: ModelConfig) -> str | None:
    """Return the file of Jacobians that ships with an SAE; None on another model than its own, or
    where nothing ships, as in an earlier distribution.
    """
    file = sae.jacobians
    return file if file and model.name == sae.model and Path(file).is_file() else None


def resolve_lens(lens: LensConfig, jacobians: str | None) -> None:
    """Let the lens read the `jacobians` that ship with the SAE, unless it is another lens, or other
    sequences or a file are asked for.
    """
    if lens == LensConfig(**_keys("lens", "jacobian")):
        lens.path = jacobians


def source_note(config: RunConfig) -> str | None:
    """Say that a corpus is read in the place of the examples that ship with the SAE, if it is."""
    scores = parse_scores(config.score)
    by_corpus = [name for name, score in scores.items() if score.corpus_pass() is not None]
    if not by_corpus or config.sae.examples is None or shipped_examples(config) is not None:
        return None
    return (
        f"corpus={config.corpus.name} is read for {', '.join(by_corpus)}, in the place of the "
        f"examples that ship with sae={config.sae.name}; corpus=auto takes those."
    )


def unread_note(
    config: RunConfig, usual_values: Callable[[RunConfig], Iterable[RunConfig | None]]
) -> str | None:
    """Say that nothing in the run reads the corpus that somebody has chosen for it.

    Args:
        config: the run's; in a sweep other jobs may read that corpus, so it isn't refused.
        usual_values: composes what the subject alone and the experiment alone give, whose corpus
            nobody has chosen for this run.
    """
    if config.corpus.name == AUTO or reads_corpus(config):
        return None
    if any(usual is not None and usual.corpus == config.corpus for usual in usual_values(config)):
        return None
    return f"corpus={config.corpus.name}: nothing in this run reads a corpus."


def counts_need_a_pass(config: RunConfig) -> bool:
    """Return whether `features.min_examples` has to read the corpus, because no file of examples
    tells.
    """
    least = config.features.min_examples
    return least is not None and (shipped_examples(config) is None or least > N_TEXTS)


def reads_corpus(config: RunConfig) -> bool:
    """Return whether the run may read its corpus: for a score or the lens, to choose features or
    steer in their units, or for PMI of texts that no word was asked for.
    """
    if config.lens.name == "jacobian" and not config.lens.path:
        return True
    if any("corpus" in score.uses() for score in parse_scores(config.score).values()):
        return True
    if config.concepts is not None:
        return False
    toward = config.toward.words is not None or config.features.concept is not None
    steers = bool(parse_factors(config.steer.factors))
    of_texts = steers and (not toward or config.steer.unit == "max_activation")
    return of_texts or bool(config.features.min_examples or config.quality.n_tokens)


def _entry(name: str) -> CorpusConfig:
    return CorpusConfig(**_keys("corpus", name))


def _keys(group: str, name: str) -> dict[str, Any]:
    return {key: value for key, value in entries(group)[name].items() if key != "about"}
