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


def counts_need_a_pass(config: RunConfig) -> bool:
    """Return whether `features.min_examples` has to read the corpus, because no file of examples
    tells.
    """
    least = config.features.min_examples
    return least is not None and (shipped_examples(config) is None or least > N_TEXTS)


def _entry(name: str) -> CorpusConfig:
    values = {key: value for key, value in entries("corpus")[name].items() if key != "about"}
    return CorpusConfig(**values)
