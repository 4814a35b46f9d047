"""ReFT-r1: a direction trained to detect a concept and, scaled by what it detects, to write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steerlens.steering.methods.directions import Directions, unit
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import (
    Batch,
    Budget,
    FromHook,
    budget_of,
    clip_rows,
    epochs,
    groups_that_fit,
    n_steps,
)

NAME = "ReFT-r1"
TRAINS = True


@dataclass
class ReftR1Config:
    """AxBench's settings for Gemma-2-2B by default; for 9B lr is 5e-3."""

    epochs: int = 3
    batch_size: int = 6
    """Texts in a step, positives and negatives mixed."""
    lr: float = 1e-2
    """Falls linearly to 0."""
    weight_decay: float = 0.0
    top_k: int = 8
    """Latents whose mean scales what is added."""
    latent_l1: float = 5e-3
    """Weight of the other latents' mean in the loss, reached linearly by the last step."""
    clip: float = 1.0
    """Largest length of the gradient."""


Config = ReftR1Config


def budget(config: ReftR1Config, n_positives: int, n_negatives: int) -> Budget:
    """Return what training takes; see `methods`."""
    return budget_of(config, n_positives + n_negatives)


def fit(task: Task, config: ReftR1Config, seed: int) -> Directions:
    """Return the unit directions trained with `h + mean(top_k(relu(h @ v))) v` at every position
    of the text (AxBench, Section 3.1). The score of a token is `relu(h @ v)`.
    """
    rows: dict[int, torch.Tensor] = {}
    for alike in task.labelled.alike():
        for group in groups_that_fit(task, alike, config.batch_size):
            rows |= dict(zip(group, _train(task, group, config, seed), strict=True))
            task.progress(len(group))
    return Directions(torch.stack([rows[c] for c in range(len(task))]), rectified=True)


def _train(task: Task, concepts: Sequence[int], config: ReftR1Config, seed: int) -> torch.Tensor:
    model = FromHook(task)
    device = task.subject.lm.device_of_block(task.subject.layer)
    d_in = int(task.subject.sae.cfg.d_in)
    v_CD = torch.nn.Parameter(torch.full((len(concepts), d_in), 0.01, device=device))
    optimizer = torch.optim.AdamW([v_CD], lr=config.lr, weight_decay=config.weight_decay)
    steps = n_steps(len(task.labelled.of(concepts[0])), config.epochs, config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    batches = epochs(task, concepts, NAME, seed, config.epochs, config.batch_size, negatives=True)
    for step, batch in enumerate(batches):
        losses_C = losses(model, batch, v_CD, config, step / steps)
        (grad_CD,) = torch.autograd.grad(losses_C.sum(), [v_CD])
        with torch.no_grad():
            grad_CD = clip_rows(grad_CD, config.clip)
            v_CD.data = unit(v_CD.data)
            v_CD.grad = grad_CD - (grad_CD * v_CD).sum(dim=-1, keepdim=True) * v_CD
        optimizer.step()
        schedule.step()
    return unit(v_CD.data)


def losses(
    model: FromHook, batch: Batch, v_CD: torch.Tensor, config: ReftR1Config, ramp: float
) -> torch.Tensor:
    """Return, as (C,), each concept's loss of a batch; `ramp` goes from 0 to 1 in the course of
    training.
    """
    penalties: list[torch.Tensor] = []

    def edit(x_RLD: torch.Tensor) -> torch.Tensor:
        v_RD = v_CD[batch.concept_R.to(v_CD.device)]
        own_RL = batch.own_RL.to(x_RLD.device)
        latent_RL = torch.bmm(x_RLD.float(), v_RD[..., None])[..., 0].relu() * own_RL
        n_own_R = own_RL.sum(dim=-1)
        top_RK = latent_RL.topk(min(config.top_k, latent_RL.shape[1]), dim=-1).values
        penalties.append((latent_RL.sum(dim=-1) - top_RK.sum(dim=-1)) / n_own_R)
        scale_R = top_RK.sum(dim=-1) / n_own_R.clamp(max=config.top_k)
        return x_RLD + (scale_R[:, None] * v_RD)[:, None] * own_RL[..., None]

    likelihood_C = model.losses(batch, edit, len(v_CD))
    concept_R = batch.concept_R.to(v_CD.device)
    rows_C = torch.bincount(concept_R, minlength=len(v_CD))
    penalty_C = torch.zeros_like(likelihood_C).index_add(0, concept_R, penalties[0]) / rows_C
    return likelihood_C + ramp * config.latent_l1 * penalty_C
