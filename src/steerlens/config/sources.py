"""Whether a run reads a corpus of its own, or the examples that ship with its SAE."""

from __future__ import annotations

from steerlens.config.entries import entries
from steerlens.config.parse import parse_scores
from steerlens.config.schema import CorpusConfig, RunConfig

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


def shipped_examples(config: RunConfig) -> str | None:
    """Return the file of examples that stands for the corpus; None where a corpus is given by
    hand, or the SAE has none.
    """
    return config.sae.examples if config.corpus.name == AUTO else None


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


def counts_need_a_pass(config: RunConfig) -> bool:
    """Return whether `features.min_examples` has to read the corpus, because no file of examples
    tells.
    """
    least = config.features.min_examples
    return least is not None and (shipped_examples(config) is None or least > N_TEXTS)


def _entry(name: str) -> CorpusConfig:
    values = {key: value for key, value in entries("corpus")[name].items() if key != "about"}
    return CorpusConfig(**values)
