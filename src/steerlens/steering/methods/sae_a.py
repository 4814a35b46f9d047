"""SAE-A: the feature whose activation tells positives from negatives best."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steerlens.engine.intervention import decoder_rows, looks_back
from steerlens.errors import SteerlensError
from steerlens.steering.methods.directions import Directions, largest_activations
from steerlens.steering.methods.task import Task

NAME = "SAE-A"

FEATURES_AT_ONCE = 4096


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
    if looks_back(subject.sae):
        raise SteerlensError(f"SAE-A can't read {subject.name}: its activations look back.")
    best: list[int] = []
    activations_of_text: dict[int, torch.Tensor] = {}  # by text: many concepts have the same
    most = max(1, task.memory_budget // (4 * subject.d_sae))
    for concept, positives in enumerate(task.labelled.positives):
        texts = task.labelled.of(concept)
        missing = [text for text in texts if text not in activations_of_text]
        if len(activations_of_text) + len(missing) > most:
            activations_of_text = {
                text: activations_of_text[text] for text in texts if text in activations_of_text
            }
        activations_of_text |= zip(
            missing, largest_activations(subject, task.vectors, missing), strict=True
        )
        acts_NF = torch.stack([activations_of_text[text] for text in texts])
        n = len(positives)
        order_F = auroc(acts_NF[:n], acts_NF[n:]).argsort(descending=True, stable=True)
        best.append(int(order_F[config.rank]))
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
