"""SSV: a supervised steering vector, trained to make positives likely when it is added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steerlens.steering.methods.directions import Directions
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import (
    Budget,
    FromHook,
    budget_of,
    epochs,
    groups_that_fit,
    n_steps,
)

NAME = "SSV"
TRAINS = True


@dataclass
class SsvConfig:
    """AxBench's settings by default."""

    epochs: int = 3
    batch_size: int = 6
    """Positives in a step; negatives aren't used."""
    lr: float = 1e-2
    """Falls linearly to 0."""
    weight_decay: float = 0.0


Config = SsvConfig


def budget(config: SsvConfig, n_positives: int, n_negatives: int) -> Budget:
    """Return what training takes; see `methods`."""
    return budget_of(config, n_positives)


def fit(task: Task, config: SsvConfig, seed: int) -> Directions:
    """Return vectors trained with `h + v` at every position of the positives (AxBench, Section
    3), as long as training made them. The score of a token is `relu(h @ v)`.
    """
    rows: dict[int, torch.Tensor] = {}
    for alike in task.labelled.alike():
        for group in groups_that_fit(task, alike, config.batch_size):
            rows |= dict(zip(group, _train(task, group, config, seed), strict=True))
            task.progress(len(group))
    return Directions(torch.stack([rows[c] for c in range(len(task))]), rectified=True)


def _train(task: Task, concepts: Sequence[int], config: SsvConfig, seed: int) -> torch.Tensor:
    model = FromHook(task)
    device = task.subject.lm.device_of_block(task.subject.layer)
    d_in = int(task.subject.sae.cfg.d_in)
    v_CD = torch.nn.Parameter(torch.full((len(concepts), d_in), 0.01, device=device))
    optimizer = torch.optim.AdamW([v_CD], lr=config.lr, weight_decay=config.weight_decay)
    steps = n_steps(len(task.labelled.positives[concepts[0]]), config.epochs, config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    batches = epochs(task, concepts, NAME, seed, config.epochs, config.batch_size, negatives=False)
    for batch in batches:

        def edit(x_RLD: torch.Tensor, batch=batch) -> torch.Tensor:
            v_RD = v_CD[batch.concept_R.to(v_CD.device)]
            return x_RLD + v_RD[:, None] * batch.own_RL.to(x_RLD.device)[..., None]

        losses_C = model.losses(batch, edit, len(concepts))
        v_CD.grad = torch.autograd.grad(losses_C.sum(), [v_CD])[0]
        optimizer.step()
        schedule.step()
    return v_CD.data
