"""Prompt robustness: the output score under many neutral prompts, its mean and spread.

Paper Appendix D: scores under one prompt correlate with the mean over 50 prompts (0.9557). The
prompts here are our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.config.prompts import PROMPTS
from steerlens.engine.run_context import no_progress
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext, ScoreConfig, output

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


@dataclass
class PromptRobustnessConfig(ScoreConfig):
    """Settings of the prompt robustness."""

    method: str = "prompt_robustness"
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS))
    """Neutral prompts, at least two."""
    factor: float = 10.0
    """Steering factor s, as of the output score."""
    top_k: int = 20
    """Number of logit-lens tokens that stand for the feature."""
    keep_error: bool = True
    """Keep the SAE's reconstruction error."""

    FILLS: ClassVar[Sequence[str]] = ("output_score_mean", "output_score_std")

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if len(self.prompts) < 2 or not all(prompt.strip() for prompt in self.prompts):
            raise SteerlensError(
                "prompts of score prompt_robustness: give two or more, none empty."
            )

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ()

    def uses_lens(self) -> bool:
        """Return whether the numbers depend on the run's lens."""
        return True


Config = PromptRobustnessConfig


def score(
    subject: Subject, features: np.ndarray, config: PromptRobustnessConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Score `features`, shape (n,).

    Returns:
        `output_score_mean` and `output_score_std` (of the population) over the prompts, and
        `output_score_by_prompt`, the scores themselves, from which a run's summary takes the
        correlation of every prompt with the mean.

    Raises:
        SteerlensError: as `output` does.
    """
    silent = dataclasses.replace(ctx, progress=no_progress)
    settings = output.OutputScoreConfig(
        factor=config.factor,
        top_k=config.top_k,
        keep_error=config.keep_error,
        null_directions=0,
    )
    # A feature's scores side by side: numpy then adds them up in the same order for any number.
    scores_FP = np.stack(
        [
            np.asarray(
                output.score(
                    subject, features, dataclasses.replace(settings, prompt=prompt), silent
                )["output_score"]
            )
            for prompt in config.prompts
        ],
        axis=1,
    )
    ctx.progress(len(features))
    return {
        "output_score_mean": scores_FP.mean(axis=1),
        "output_score_std": scores_FP.std(axis=1),
        "output_score_by_prompt": scores_FP,
    }
