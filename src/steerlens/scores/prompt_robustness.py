"""Prompt robustness: the output score under many neutral prompts, its mean and spread.

Paper Appendix D: scores under one prompt correlate with the mean over 50 prompts (0.9557). The
prompts here are our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from steerlens.errors import SteerlensError
from steerlens.scores import ScoreConfig, ScoreRun, output

if TYPE_CHECKING:
    from steerlens.subject import Subject

PROMPTS = (
    "I think that",
    "It seems that",
    "In general,",
    "As far as I know,",
    "To be honest,",
    "Most of the time,",
    "Some people say that",
    "One thing to note is",
    "The main point is",
    "What I mean is",
    "Let me explain:",
    "First of all,",
    "On the other hand,",
    "In other words,",
    "For example,",
    "As a result,",
    "After a while,",
    "At the same time,",
    "By the way,",
    "In the end,",
    "It is often said that",
    "We can see that",
    "You might find that",
    "There are several",
    "There was once a",
    "This is a",
    "That was the",
    "Here is the",
    "When we look at",
    "If you want to",
    "Because of this,",
    "Although it may be",
    "Over the years,",
    "Today,",
    "Yesterday I",
    "My friend told me",
    "The next step is",
    "The question is",
    "The answer is",
    "According to the",
    "Before we begin,",
    "Let us consider",
    "It turned out that",
    "People often",
    "Sometimes,",
    "In my opinion,",
    "From what I have seen,",
    "The best way to",
    "Another way to say it:",
    "To sum up,",
)


@dataclass
class Config(ScoreConfig):
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

    def check(self) -> None:
        super().check()
        if len(self.prompts) < 2 or not all(prompt.strip() for prompt in self.prompts):
            raise SteerlensError(
                "prompts of score prompt_robustness: give two or more, none empty."
            )

    def uses(self) -> Sequence[str]:
        return ()


def score(
    subject: Subject, features: np.ndarray, config: Config, run: ScoreRun
) -> Mapping[str, np.ndarray]:
    """Scores `features`, shape (n,).

    Returns:
        `output_score_mean` and `output_score_std` (of the population) over the prompts, and
        `output_score_by_prompt`, the scores themselves, from which a run's summary takes the
        correlation of every prompt with the mean.

    Raises:
        SteerlensError: as `output` does.
    """
    silent = dataclasses.replace(run, progress=lambda done: None)
    settings = output.Config(factor=config.factor, top_k=config.top_k, keep_error=config.keep_error)
    scores_PF = np.stack(
        [
            np.asarray(
                output.score(
                    subject, features, dataclasses.replace(settings, prompt=prompt), silent
                )["output_score"]
            )
            for prompt in config.prompts
        ]
    )
    run.progress(len(features))
    return {
        "output_score_mean": scores_PF.mean(axis=0),
        "output_score_std": scores_PF.std(axis=0),
        "output_score_by_prompt": scores_PF.T,
    }
