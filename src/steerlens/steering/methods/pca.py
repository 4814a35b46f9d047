"""PCA: the direction in which the tokens of positives vary most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from steerlens.steering.methods.components import first_component
from steerlens.steering.methods.diffmean import diff_means
from steerlens.steering.methods.directions import Directions
from steerlens.steering.methods.task import Task

NAME = "PCA"


@dataclass
class PcaConfig:
    """AxBench's settings by default."""

    orient: bool = False
    """Turn the component so that positives have the larger mean. AxBench leaves its sign to
    scikit-learn, which knows nothing of the concept."""


Config = PcaConfig


def fit(task: Task, config: PcaConfig, seed: int) -> Directions:
    """Return the first principal component of the centred tokens of positives (AxBench, Section
    3).
    """
    return components_of(task, config.orient, seed, NAME, lambda x_TD, generator: x_TD)


def components_of(
    task: Task,
    orient: bool,
    seed: int,
    name: str,
    prepare: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
) -> Directions:
    """Return the first component, for each concept, of what `prepare` makes of its positives'
    tokens.
    """
    components = []
    for concept, positives in enumerate(task.labelled.positives):
        generator = torch.Generator().manual_seed(
            int(task.rng(concept, name, seed).integers(2**62))
        )
        prepared_TD = prepare(task.vectors.of(positives), generator)
        components.append(first_component(prepared_TD, generator))
    vectors_CD = torch.stack(components)
    if orient:
        labelled = task.labelled
        toward_CD = diff_means(task.vectors, labelled.positives, labelled.negatives)
        vectors_CD = torch.where(
            (vectors_CD * toward_CD).sum(dim=-1, keepdim=True) < 0, -vectors_CD, vectors_CD
        )
    return Directions(vectors_CD)
