"""SAE: the feature that the concept's metadata names. It learns nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steerlens.engine.intervention import decoder_rows
from steerlens.steering.methods.directions import Directions
from steerlens.steering.methods.task import Task

NAME = "SAE"
READS_TEXTS = False


@dataclass
class SaeFeaturesConfig:
    """Nothing to set."""


Config = SaeFeaturesConfig


def fit(task: Task, config: SaeFeaturesConfig, seed: int) -> Directions:
    """Return the decoder rows of the concepts' features (AxBench, Section 3).

    Raises:
        SteerlensError: for a concept whose feature isn't one of the subject's SAE.
    """
    features = []
    for concept in task.concepts:
        concept.check_feature(task.subject.layer, task.subject.d_sae, task.subject.name)
        assert concept.feature is not None
        features.append(concept.feature.feature)
    features_C = torch.tensor(features)
    return Directions(decoder_rows(task.subject.sae, features_C).float(), features_C=features_C)
