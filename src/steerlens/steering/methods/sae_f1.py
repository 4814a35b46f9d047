"""SAE-F1: the feature with the best calibrated F1 for the concept, of those that steer at all.

After arXiv 2605.31183: of every second text of a concept, and every second of the others, the
threshold on the feature's largest activation with the best F1; of the other half the F1 that it
has. The best feature by that whose output score reaches a least one is taken (`score=f1`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from steerlens.config.schema import LensConfig
from steerlens.engine.intervention import decoder_rows
from steerlens.engine.run_context import no_progress
from steerlens.errors import SteerlensError
from steerlens.scores import output
from steerlens.scores.f1 import best_thresholds, f1_scores
from steerlens.steering.methods.directions import Directions
from steerlens.steering.methods.pooled import FEATURES_AT_ONCE, pooled_latents
from steerlens.steering.methods.task import Task

NAME = "SAE-F1"

SCORED_AT_ONCE = 32
"""Features whose output scores are looked at together, the best by F1 first."""


@dataclass
class SaeF1Config:
    """The paper's threshold."""

    min_output_score: float = field(default=1e-3, metadata={"most": 1})
    """The output score that a feature has to reach, toward its tokens of the logit lens."""


Config = SaeF1Config


@torch.no_grad()
def fit(task: Task, config: SaeF1Config, seed: int) -> Directions:
    """Return, for each concept the feature with the best F1 on the texts that the threshold wasn't
    learnt from, of equal ones the first.

    Raises:
        SteerlensError: for an SAE whose activations depend on the positions before, fewer than two
            texts with or without a concept, or no feature with such an output score.
    """
    subject = task.subject
    silent = replace(task.ctx, lens=LensConfig(), progress=no_progress)
    settings = output.OutputScoreConfig(null_directions=0)
    best: list[int] = []
    scores_F = torch.full((subject.d_sae,), torch.nan, dtype=torch.float64)
    for index, (acts_NF, n_positive) in enumerate(pooled_latents(task, NAME)):
        if min(n_positive, len(acts_NF) - n_positive) < 2:
            raise SteerlensError(
                f"{NAME} needs two texts of the concept {task.concepts[index].name!r} and two "
                "without it: half of them set a threshold, half are tested."
            )
        f1_F = calibrated_f1(acts_NF, n_positive)
        for ids_n in f1_F.argsort(descending=True, stable=True).split(SCORED_AT_ONCE):
            missing = ids_n[scores_F[ids_n].isnan()]
            if len(missing):
                columns = output.score(task.subject, missing.numpy(), settings, silent)
                scores_F[missing] = torch.from_numpy(np.asarray(columns["output_score"]))
            enough = ids_n[scores_F[ids_n] >= config.min_output_score]
            if len(enough):
                best.append(int(enough[0]))
                break
        else:
            raise SteerlensError(
                f"{NAME}: no feature of {subject.name} reaches the output score "
                f"{config.min_output_score:g}; lower concepts.settings.{NAME}.min_output_score."
            )
    features_C = torch.tensor(best)
    return Directions(decoder_rows(subject.sae, features_C).float(), features_C=features_C)


def calibrated_f1(acts_NF: torch.Tensor, n_positive: int) -> torch.Tensor:
    """Return, as (F,) float64, the F1 on every second text of each label, at the threshold of the
    others; the first `n_positive` texts are the concept's.
    """
    is_positive_N = np.arange(len(acts_NF)) < n_positive
    learnt_N = np.r_[np.arange(n_positive) % 2, np.arange(len(acts_NF) - n_positive) % 2] == 0
    parts = []
    for acts_Nf in acts_NF.split(FEATURES_AT_ONCE, dim=1):
        acts = acts_Nf.float().cpu().numpy()
        threshold_f = best_thresholds(acts[learnt_N], is_positive_N[learnt_N])
        parts.append(f1_scores(acts[~learnt_N], is_positive_N[~learnt_N], threshold_f))
    return torch.from_numpy(np.concatenate(parts))
