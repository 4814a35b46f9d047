"""Mean logit: how strongly the feature's direction promotes its own logit-lens tokens.

The criterion of SAELogits (AxBench, pull request 146): the mean of the k largest entries of
`unembed(LN(d_i))`. It costs no forward pass, as the logit lens is computed for the tokens anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.errors import SteerlensError
from steerlens.scores import RunContext, ScoreConfig

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


@dataclass
class MeanLogitConfig(ScoreConfig):
    """Settings of the mean logit."""

    method: str = "mean_logit"
    top_k: int = 20
    """Number of logit-lens tokens that stand for the feature."""

    FILLS: ClassVar[Sequence[str]] = ("mean_logit",)

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ()

    def uses_lens(self) -> bool:
        """Return whether the numbers depend on the run's lens."""
        return True


Config = MeanLogitConfig


def score(
    subject: Subject, features: np.ndarray, config: MeanLogitConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Score `features`, shape (n,): `mean_logit`, before what a model does to its logits after the
    unembedding.

    Raises:
        SteerlensError: a `top_k` beyond the vocabulary, or NaN scores.
    """
    import torch

    from steerlens.engine.lens import promoted_logits, promoted_tokens

    ids_F = torch.tensor(np.asarray(features, dtype=np.int64))
    tokens_FK = promoted_tokens(subject, ids_F, config.top_k, ctx)
    mean_F = promoted_logits(subject, ids_F, tokens_FK, ctx).double().mean(dim=-1)
    if not torch.isfinite(mean_F).all():
        raise SteerlensError(
            f"layer {subject.layer} gives NaN scores in {subject.lm.dtype}; use dtype=float32."
        )
    ctx.progress(len(features))
    return {"mean_logit": mean_F.numpy()}
