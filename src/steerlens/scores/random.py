"""Random score: the control that every other score has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.scores import RunContext, ScoreConfig

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


@dataclass
class RandomScoreConfig(ScoreConfig):
    """Settings of the random score."""

    method: str = "random"

    FILLS: ClassVar[Sequence[str]] = ("random_score",)

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ("seed",)


Config = RandomScoreConfig


def score(
    subject: Subject, features: np.ndarray, config: RandomScoreConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Return `random_score` of `features`, shape (n,): uniform in [0, 1).

    A feature's number depends on the run's seed, its layer and its id alone.
    """
    numbers_F = np.random.default_rng([ctx.seed, subject.layer]).random(subject.d_sae)
    ctx.progress(len(features))
    return {"random_score": numbers_F[np.asarray(features, dtype=np.int64)]}
