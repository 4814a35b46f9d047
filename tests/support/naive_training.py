"""Trained directions the slow way: one concept, one text a forward of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from steerlens.steering.methods import reft_r1
from steerlens.steering.methods.task import Task


def naive_loss(
    task: Task, concept: int, texts: list[int], edit: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Mean over the batch's tokens to predict, one text a forward of the whole model."""
    nll: list[torch.Tensor] = []
    site = task.subject.site
    for place in texts:
        text = task.labelled.texts[place]

        def write(out: torch.Tensor, hook: Any, n_prefix: int = text.n_prefix) -> torch.Tensor:
            x_LD = out.flatten(2)[0]
            new = torch.cat([x_LD[:n_prefix], edit(x_LD[n_prefix:])])
            return new.reshape(out.shape)

        logits = task.subject.lm.bridge.run_with_hooks(
            torch.tensor([text.ids]), fwd_hooks=[(site.write, write)]
        )[0]
        log_p = logits.log_softmax(-1)
        nll += [-log_p[t - 1, text.ids[t]] for t in range(text.n_prompt, len(text.ids))]
    return torch.stack(nll).mean()


def naive_training(task: Task, concept: int, config: Any, seed: int) -> torch.Tensor:
    """ReFT-r1 or SSV of one concept as AxBench describes them."""
    is_reft = isinstance(config, reft_r1.Config)
    labelled = task.labelled
    texts = labelled.of(concept) if is_reft else labelled.positives[concept]
    rng = task.rng(concept, "ReFT-r1" if is_reft else "SSV", seed)
    v_D = torch.nn.Parameter(torch.full((int(task.subject.sae.cfg.d_in),), 0.01))
    optimizer = torch.optim.AdamW([v_D], lr=config.lr, weight_decay=config.weight_decay)
    n_steps = config.epochs * -(-len(texts) // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
    step = 0
    for _ in range(config.epochs):
        order = rng.permutation(len(texts))
        for first in range(0, len(texts), config.batch_size):
            penalties: list[torch.Tensor] = []

            def edit(x_LD: torch.Tensor, penalties: list[torch.Tensor] = penalties) -> torch.Tensor:
                if not is_reft:
                    return x_LD + v_D
                latent_L = (x_LD @ v_D).relu()
                top_K = latent_L.topk(min(config.top_k, len(latent_L))).values
                penalties.append((latent_L.sum() - top_K.sum()) / len(latent_L))
                return x_LD + top_K.mean() * v_D

            here = [texts[k] for k in order[first : first + config.batch_size]]
            loss = naive_loss(task, concept, here, edit)
            if is_reft:
                loss = loss + step / n_steps * config.latent_l1 * torch.stack(penalties).mean()
            loss.backward()
            if is_reft:
                torch.nn.utils.clip_grad_norm_([v_D], config.clip)
                assert v_D.grad is not None
                v_D.data /= v_D.data.norm()
                v_D.grad -= (v_D.grad * v_D.data).sum() * v_D.data
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
    return v_D.data / v_D.data.norm() if is_reft else v_D.data
