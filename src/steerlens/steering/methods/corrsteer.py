"""CorrSteer: the feature whose activation goes best with texts of the concept.

CorrSteer (arXiv 2508.12535) correlates each feature's largest activation over generated tokens
with what came of the texts, and adds as much of the best one as it has, on average, where they
succeed. A concept's texts stand for what is generated: their tokens after the prompt are read,
and those that have the concept are the successes. (`score=outcome` does it with a model's own
texts.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from steerlens.engine.intervention import decoder_rows
from steerlens.errors import SteerlensError
from steerlens.steering.methods.directions import Directions
from steerlens.steering.methods.pooled import FEATURES_AT_ONCE, pooled_latents
from steerlens.steering.methods.task import Task

NAME = "CorrSteer"

ROUNDING = 1e-6
"""A correlation that isn't larger is none."""


@dataclass
class CorrSteerConfig:
    """Nothing to set."""


Config = CorrSteerConfig


@torch.no_grad()
def fit(task: Task, config: CorrSteerConfig, seed: int) -> Directions:
    """Return, for each concept the feature with the largest correlation, of equal ones the first;
    the factor 1 adds its mean over the successes of the largest activation.

    Raises:
        SteerlensError: for an SAE whose activations depend on the positions before, or a concept
            with which no feature goes.
    """
    subject = task.subject
    answers = replace(task.vectors, n_prefix=[text.n_prompt for text in task.labelled.texts])
    best: list[int] = []
    scales: list[float] = []
    for index, (acts_NF, n_positive) in enumerate(pooled_latents(task, NAME, answers)):
        correlation_F = correlations(acts_NF, torch.arange(len(acts_NF)) < n_positive)
        feature = int(correlation_F.argmax())
        if not correlation_F[feature] > ROUNDING:
            raise SteerlensError(
                f"{NAME}: no feature of {subject.name} fires more in texts of the concept "
                f"{task.concepts[index].name!r} than in others; leave one of the two out."
            )
        best.append(feature)
        scales.append(float(acts_NF[:n_positive, feature].float().mean()))
    features_C = torch.tensor(best)
    vectors_CD = decoder_rows(subject.sae, features_C).float()
    return Directions(vectors_CD, features_C=features_C, scale_C=torch.tensor(scales))


def correlations(acts_NF: torch.Tensor, outcome_N: torch.Tensor) -> torch.Tensor:
    """Return, as (F,) float64, Pearson's correlation of each column with the outcome; -1 of one
    that is the same everywhere, which no choice may fall on.
    """
    centred_N = outcome_N.to(acts_NF.device).double()
    centred_N = centred_N - centred_N.mean()
    parts = []
    for acts_Nf in acts_NF.split(FEATURES_AT_ONCE, dim=1):
        varies_f = acts_Nf.amax(dim=0) > acts_Nf.amin(dim=0)
        acts_Nf = acts_Nf.double() - acts_Nf.double().mean(dim=0)
        length_f = acts_Nf.norm(dim=0) * centred_N.norm()
        parts.append(torch.where(varies_f, centred_N @ acts_Nf / length_f, -1.0))
    return torch.cat(parts)
