"""Delta Token Confidence: how much amplifying a feature sharpens the next-token distribution.

arXiv 2510.03659: the confidence of a distribution is the mean negative log-probability of its k
most probable tokens; the score is its change when the feature is amplified after a neutral prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.errors import SteerlensError
from steerlens.scores import RunContext, ScoreConfig

if TYPE_CHECKING:
    import torch

    from steerlens.engine.subject import Subject


@dataclass
class TokenConfidenceConfig(ScoreConfig):
    """Settings of Delta Token Confidence."""

    method: str = "token_confidence"
    prompt: str = "From my experience,"
    """Neutral prompt."""
    factor: float = 10.0
    """Steering factor (alpha): the feature's activation grows by this times the largest one."""
    k: int = 20
    """Number of most probable tokens; with 1 a sharper distribution scores lower, not higher."""
    keep_error: bool = True
    """Keep the SAE's reconstruction error."""

    FILLS: ClassVar[Sequence[str]] = ("token_confidence_delta",)

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ()


Config = TokenConfidenceConfig


def score(
    subject: Subject, features: np.ndarray, config: TokenConfidenceConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Score `features`, shape (n,): `token_confidence_delta`, in nats.

    Raises:
        SteerlensError: for an empty prompt, a `k` beyond the vocabulary, or NaN scores.
    """
    import torch

    from steerlens.engine.ranks import bytes_per_row, token_confidence
    from steerlens.engine.steered import steered_prompt

    head = subject.lm.head
    if not 1 <= config.k <= head.d_vocab:
        raise SteerlensError(
            f"k={config.k} is out of range: {subject.lm.name} has {head.d_vocab} tokens."
        )
    ids_F = torch.tensor(np.asarray(features, dtype=np.int64))
    prompt = steered_prompt(subject, config.prompt, config.keep_error, ctx)
    confidence_F = torch.empty(len(ids_F), dtype=torch.float64)

    def confidence(rows: slice, h_BD: torch.Tensor) -> None:
        confidence_F[rows] = token_confidence(head, h_BD, config.k).double().cpu()

    prompt.run(ids_F, config.factor, ctx, bytes_per_row(config.k), confidence)
    if not torch.isfinite(confidence_F).all():
        raise SteerlensError(
            f"layer {subject.layer} gives NaN scores in {subject.lm.dtype}; use dtype=float32."
        )
    before = float(token_confidence(head, prompt.h_D[None], config.k))
    return {"token_confidence_delta": (confidence_F - before).numpy()}
