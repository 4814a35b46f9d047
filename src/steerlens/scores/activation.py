"""Activation: how often, how strongly and at most how strongly a feature fires on a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.scores import RunContext
from steerlens.scores.sources import ReadsTexts

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


@dataclass
class ActivationConfig(ReadsTexts):
    """Settings of the activation statistics."""

    method: str = "activation"

    FILLS: ClassVar[Sequence[str]] = ("activation_frequency", "mean_activation", "max_activation")

    def corpus_pass(self) -> tuple[int | None, int] | None:
        """Return what the method needs of a pass over the corpus: (context length, examples)."""
        return (self.context_length, 0) if self.reads_corpus() else None


Config = ActivationConfig


COLUMNS = ("activation_frequency", "mean_activation", "max_activation")


def score(
    subject: Subject, features: np.ndarray, config: ActivationConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Return statistics of `features`, shape (n,), over the tokens of the corpus that count.

    Returns:
        `activation_frequency` (share of tokens on which it fires), `mean_activation` (over these
        tokens; null for a feature that never fires), `max_activation`.
    """
    from steerlens.engine.corpus_pass import activations_of

    features = np.asarray(features, dtype=np.int64)
    if config.source == "shipped":
        from steerlens.engine.examples import read_examples

        examples = read_examples(Path(str(config.path)), subject, COLUMNS)
        ctx.progress(len(features))
        return {name: examples.numbers(name, features) for name in COLUMNS}
    if not config.reads_corpus():
        raise config.unknown_source()
    activations = activations_of(subject, config.context_length, ctx)
    fired, total = activations.fired_F[features], activations.sum_F[features]
    ctx.progress(len(features))
    return {
        "activation_frequency": fired / max(activations.n_tokens, 1),
        "mean_activation": np.divide(
            total, fired, out=np.full(len(features), np.nan), where=fired > 0
        ),
        "max_activation": activations.max_F[features].astype(float),
    }
