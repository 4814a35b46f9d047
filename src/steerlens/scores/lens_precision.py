"""Lens precision: whether the tokens that a feature promotes, by the run's lens, do rise.

The share of the feature's `top_k` promoted tokens that are among the `top_k` tokens whose
next-token probability rises most, on average over held-out prompts, when the feature is amplified.
The prompts are none that a lens has seen, so that lenses can be compared by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.config.prompts import effect_prompts, held_out_prompts
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext, ScoreConfig

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


@dataclass
class LensPrecisionConfig(ScoreConfig):
    """Settings of the lens precision."""

    method: str = "lens_precision"
    top_k: int = 20
    """Number of promoted tokens, and of those that rise most."""
    prompts: list[str] = field(default_factory=lambda: list(held_out_prompts(8)))
    """Neutral prompts, none of them the effect lens's own."""
    factor: float = 10.0
    """Steering factor s, as of the output score."""

    FILLS: ClassVar[Sequence[str]] = ("lens_precision",)

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise SteerlensError("prompts of score lens_precision: give at least one, none empty.")
        if self.factor == 0:
            raise self.refusal("factor", "steers with nothing, so that nothing can rise")

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ()

    def uses_lens(self) -> bool:
        """Return whether the numbers depend on the run's lens."""
        return True


Config = LensPrecisionConfig


def score(
    subject: Subject, features: np.ndarray, config: LensPrecisionConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Score `features`, shape (n,): `lens_precision`, 0 to 1.

    Raises:
        SteerlensError: a `top_k` beyond the vocabulary, or prompts that the effect lens was made
            on.
    """
    import torch

    from steerlens.engine.lens import EFFECT, promoted_tokens, rising_tokens

    if ctx.lens.name == EFFECT:
        for prompt in config.prompts:
            if prompt in effect_prompts(ctx.lens.n_prompts):
                raise SteerlensError(
                    f"prompts of score lens_precision: {prompt!r} is one that the effect lens "
                    "finds its tokens on; leave it out."
                )
    ids_F = torch.tensor(np.asarray(features, dtype=np.int64))
    silent = dataclasses.replace(ctx, progress=lambda n_features: None)
    promoted_FK = promoted_tokens(subject, ids_F, config.top_k, silent)
    rising_FK = rising_tokens(
        subject, ids_F, None, config.top_k, config.prompts, config.factor, silent
    )
    is_rising_FK = (promoted_FK[:, :, None] == rising_FK[:, None]).any(dim=-1)
    ctx.progress(len(features))
    return {"lens_precision": is_rising_FK.double().mean(dim=-1).numpy()}
