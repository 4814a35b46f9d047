"""Random: a direction that knows nothing, which every other has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steerlens.steering.methods.directions import Directions, unit
from steerlens.steering.methods.task import Task

NAME = "Random"
READS_TEXTS = False


@dataclass
class RandomDirectionConfig:
    """Nothing to set."""


Config = RandomDirectionConfig


def fit(task: Task, config: RandomDirectionConfig, seed: int) -> Directions:
    """Return a unit direction, uniform on the sphere, for each concept."""
    d_in = int(task.subject.sae.cfg.d_in)
    rows = [
        torch.from_numpy(task.rng(concept, NAME, seed).standard_normal(d_in))
        for concept in range(len(task))
    ]
    return Directions(unit(torch.stack(rows)).float())
