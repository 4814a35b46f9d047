"""DiffMean: the mean vector of all tokens of positives minus that of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steerlens.baselines.directions import Directions, unit
from steerlens.baselines.labelled import TokenVectors
from steerlens.baselines.task import Task

NAME = "DiffMean"


@dataclass
class Config:
    """AxBench's has nothing to set: one look at every token, and a vector of length 1."""


def fit(task: Task, config: Config, seed: int) -> Directions:
    """Difference of means (AxBench, Section 3), with one matrix product for all concepts."""
    labelled = task.labelled
    return Directions(diff_means(task.vectors, labelled.positives, labelled.negatives))


def diff_means(
    vectors: TokenVectors, positives: Sequence[Sequence[int]], negatives: Sequence[Sequence[int]]
) -> torch.Tensor:
    """(C, D): the unit difference of the means over all tokens."""
    return unit(_means(vectors, positives) - _means(vectors, negatives))


def _means(vectors: TokenVectors, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    belongs_CN = vectors.x_TD.new_zeros(len(texts), len(vectors))
    for row, places in enumerate(texts):
        belongs_CN[row, list(places)] = 1
    return belongs_CN @ vectors.sum_ND / (belongs_CN @ vectors.length_N)[:, None]
