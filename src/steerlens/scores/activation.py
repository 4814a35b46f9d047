"""Activation: how often, how strongly and at most how strongly a feature fires on a corpus."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlens.errors import SteerlensError
from steerlens.scores import ScoreConfig, ScoreRun

if TYPE_CHECKING:
    from steerlens.activations import Activations
    from steerlens.subject import Subject

EXAMPLES = 100

logger = logging.getLogger(__name__)


@dataclass
class Config(ScoreConfig):
    """Settings of the activation statistics."""

    method: str = "activation"
    context_length: int | None = None
    """Tokens in a piece of text at most; null = corpus.context_length."""

    def depends_on(self, run: ScoreRun) -> dict[str, Any]:
        return {"corpus": run.corpus_key()}


def score(
    subject: Subject, features: np.ndarray, config: Config, run: ScoreRun
) -> Mapping[str, np.ndarray]:
    """Statistics of `features`, shape (n,), over the tokens of the corpus, BOS left out.

    Returns:
        `activation_frequency` (share of tokens on which it fires), `mean_activation` (over these
        tokens; null for a feature that never fires), `max_activation`.
    """
    features = np.asarray(features, dtype=np.int64)
    found = corpus_activations(subject, run, config.context_length, 0)
    fired, total = found.fired_F[features], found.sum_F[features]
    run.progress(len(features))
    return {
        "activation_frequency": fired / max(found.n_tokens, 1),
        "mean_activation": np.divide(
            total, fired, out=np.full(len(features), np.nan), where=fired > 0
        ),
        "max_activation": found.max_F[features].astype(float),
    }


def corpus_activations(
    subject: Subject, run: ScoreRun, context_length: int | None, n_examples: int
) -> Activations:
    """The pass over the run's corpus, made once for all methods and runs that ask for it.

    Always over all features of the SAE: the pass costs the same for one.
    """
    from steerlens.activations import activations, read_activations, write_activations
    from steerlens.corpus import texts
    from steerlens.corpus.pieces import pieces

    if run.corpus is None:
        raise SteerlensError("this score needs a corpus: corpus=embedded, say.")
    n_ctx = int(subject.lm.bridge.cfg.n_ctx)
    length = context_length or min(run.corpus.context_length, n_ctx)
    if not 2 <= length <= n_ctx:
        raise SteerlensError(
            f"context_length={length} is out of range: {subject.lm.name} takes 2 to {n_ctx} tokens."
        )
    n_examples = max(n_examples, EXAMPLES)
    asked = (length, n_examples)
    if asked in run.memo:
        return run.memo[asked]
    finished = part = None
    if run.store is not None:
        folder = run.store.folder({**subject.key, "corpus": run.corpus_key(), "pass": asked})
        finished, part = folder / "activations.safetensors", folder / "begun.safetensors"
    found = finished and read_activations(finished)
    if not found:
        cut = pieces(
            texts(run.corpus), subject.lm.tokenizer, length, subject.bos, run.corpus.n_tokens
        )
        with run.task(run.corpus.n_tokens, f"layer {subject.layer}, corpus", "tokens") as advance:
            found = activations(
                subject,
                cut,
                n_examples,
                run.memory_budget,
                advance,
                begun=read_activations(part) if part else None,
                keep=functools.partial(write_activations, part) if part else lambda begun: None,
            )
        if finished and part:
            write_activations(finished, found)
            part.unlink(missing_ok=True)
    wanted = run.corpus.n_tokens
    if wanted is not None and found.n_tokens < wanted:
        logger.warning(
            "the corpus %s has %s tokens, fewer than corpus.n_tokens=%s: all of it was read.",
            *(run.corpus.path or run.corpus.name, f"{found.n_tokens:,}", f"{wanted:,}"),
        )
    run.memo[asked] = found
    return found


def corpus_facts(run: ScoreRun) -> dict[str, Any] | None:
    """What provenance says of the corpus, if a method has read it."""
    read = [found.n_tokens for found in run.memo.values()]
    return {**(run.corpus_key() or {}), "tokens_read": max(read)} if read else None
