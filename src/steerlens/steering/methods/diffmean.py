"""DiffMean: the mean vector of all tokens of positives minus that of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steerlens.steering.methods.directions import Directions, unit
from steerlens.steering.methods.labelled import TokenVectors
from steerlens.steering.methods.task import Task

NAME = "DiffMean"


@dataclass
class DiffMeanConfig:
    """AxBench's has nothing to set: one look at every token, and a vector of length 1."""


Config = DiffMeanConfig


def fit(task: Task, config: DiffMeanConfig, seed: int) -> Directions:
    """Return the difference of means (AxBench, Section 3), for all concepts from each text's
    sum.
    """
    labelled = task.labelled
    return Directions(diff_means(task.vectors, labelled.positives, labelled.negatives))


def diff_means(
    vectors: TokenVectors, positives: Sequence[Sequence[int]], negatives: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return, as (C, D), the unit difference of the means over all tokens."""
    return unit(_means(vectors, positives) - _means(vectors, negatives))


def _means(vectors: TokenVectors, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return, as (C, D), the mean over all tokens of each concept's texts."""
    places = torch.tensor([index for row in texts for index in row], device=vectors.x_TD.device)
    starts = torch.tensor([0, *(len(row) for row in texts)][:-1], device=vectors.x_TD.device)
    starts = starts.cumsum(dim=0)
    sum_CD = torch.nn.functional.embedding_bag(places, vectors.sum_ND, starts, mode="sum")
    length_C = torch.stack([vectors.length_N[list(row)].sum() for row in texts])
    return sum_CD / length_C[:, None]
