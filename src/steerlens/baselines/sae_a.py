"""SAE-A: the feature whose activation tells positives from negatives best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steerlens.baselines.directions import Directions
from steerlens.baselines.labelled import TokenVectors
from steerlens.baselines.task import Task
from steerlens.errors import SteerlensError
from steerlens.intervention import decoder_rows, looks_back
from steerlens.subject import Subject

NAME = "SAE-A"

FEATURES_AT_ONCE = 4096


@dataclass
class Config:
    """Nothing to set."""


@torch.no_grad()
def fit(task: Task, config: Config, seed: int) -> Directions:
    """For each concept the feature with the largest area under the ROC curve of the texts' largest
    activations (AxBench, Section 3); of equal ones the first.

    Raises:
        SteerlensError: for an SAE whose activations depend on the positions before.
    """
    subject = task.subject
    if looks_back(subject.sae):
        raise SteerlensError(f"SAE-A can't read {subject.name}: its activations look back.")
    best: list[int] = []
    kept: dict[tuple[int, ...], torch.Tensor] = {}
    for positives, negatives in zip(task.labelled.positives, task.labelled.negatives, strict=True):
        key = tuple(negatives)
        if key not in kept:  # AxBench's concepts share theirs
            kept = {key: largest_activations(subject, task.vectors, negatives)}
        positive_NF = largest_activations(subject, task.vectors, positives)
        best.append(int(auroc(positive_NF, kept[key]).argmax()))
    features_C = torch.tensor(best)
    return Directions(decoder_rows(subject.sae, features_C).float(), features_C=features_C)


def largest_activations(
    subject: Subject, vectors: TokenVectors, texts: Sequence[int]
) -> torch.Tensor:
    """(N, F): of each text, every feature's largest activation."""
    parts = []
    for text in texts:
        x_1TD = vectors.of([text])[None].to(subject.sae.W_dec)
        parts.append(subject.sae.encode(x_1TD)[0].amax(dim=0))
    return torch.stack(parts)


def auroc(positive_NF: torch.Tensor, negative_NF: torch.Tensor) -> torch.Tensor:
    """(F,): the share of pairs in which the positive has the larger value; ties count half."""
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
