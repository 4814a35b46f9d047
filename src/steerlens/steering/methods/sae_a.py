"""SAE-A: the feature whose activation tells positives from negatives best."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steerlens.engine.intervention import decoder_rows
from steerlens.errors import SteerlensError
from steerlens.steering.methods.directions import Directions
from steerlens.steering.methods.pooled import FEATURES_AT_ONCE, pooled_latents
from steerlens.steering.methods.task import Task

NAME = "SAE-A"


@dataclass
class SaeAConfig:
    """AxBench takes the best."""

    rank: int = 0
    """Which one: 0 is the best, 1 the next."""


Config = SaeAConfig


@torch.no_grad()
def fit(task: Task, config: SaeAConfig, seed: int) -> Directions:
    """Return, for each concept the feature with the largest area under the ROC curve of the texts'
    largest activations (AxBench, Section 3), or the one of a later rank; of equal ones the first.

    Raises:
        SteerlensError: for an SAE whose activations depend on the positions before, or that has
            fewer features.
    """
    subject = task.subject
    if not 0 <= config.rank < subject.d_sae:
        raise SteerlensError(
            f"SAE-A's rank {config.rank}: {subject.name} has {subject.d_sae} features."
        )
    best: list[int] = []
    for acts_NF, n_positive in pooled_latents(task, NAME):
        auroc_F = auroc(acts_NF[:n_positive], acts_NF[n_positive:])
        best.append(int(auroc_F.argsort(descending=True, stable=True)[config.rank]))
    features_C = torch.tensor(best)
    return Directions(decoder_rows(subject.sae, features_C).float(), features_C=features_C)


def auroc(positive_NF: torch.Tensor, negative_NF: torch.Tensor) -> torch.Tensor:
    """Return, as (F,), the share of pairs in which the positive has the larger value; ties count
    half.
    """
    parts = []
    for positive_Nf, negative_Nf in zip(
        positive_NF.split(FEATURES_AT_ONCE, dim=1),
        negative_NF.split(FEATURES_AT_ONCE, dim=1),
        strict=True,
    ):
        sorted_fN = negative_Nf.T.contiguous().sort(dim=1).values
        value_fN = positive_Nf.T.contiguous()
        below = torch.searchsorted(sorted_fN, value_fN)
        at_most = torch.searchsorted(sorted_fN, value_fN, right=True)
        parts.append((below + at_most).double().sum(dim=1))
    return torch.cat(parts) / (2 * len(positive_NF) * len(negative_NF))
