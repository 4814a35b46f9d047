"""LAT: the direction in which differences of random pairs of positives' tokens vary most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steerlens.steering.methods.directions import Directions, unit
from steerlens.steering.methods.pca import components_of
from steerlens.steering.methods.task import Task

NAME = "LAT"


@dataclass
class LatConfig:
    """AxBench's settings by default."""

    orient: bool = False
    """Turn the component so that positives have the larger mean; not in AxBench."""


Config = LatConfig


def fit(task: Task, config: LatConfig, seed: int) -> Directions:
    """Return the first principal component of unit differences of pairs (AxBench, after Zou et al.

    2023).
    """
    return components_of(task, config.orient, seed, NAME, paired)


def paired(x_TD: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return, as (T // 2, D), unit differences of tokens in random pairs, each token in one;
    zeros stay.
    """
    order_T = torch.randperm(len(x_TD), generator=generator).to(x_TD.device)
    half = len(x_TD) // 2
    return unit(x_TD[order_T[:half]] - x_TD[order_T[half : 2 * half]])
