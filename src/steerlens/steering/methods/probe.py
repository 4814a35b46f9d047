"""Probe: a logistic classifier of positives' against negatives' tokens, or texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from steerlens.engine.memory import rows_that_fit
from steerlens.steering.methods.directions import Directions, unit
from steerlens.steering.methods.labelled import TokenVectors
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import Budget, budget_of

NAME = "Probe"


@dataclass
class ProbeConfig:
    """AxBench's settings for Gemma-2-2B by default; for 9B lr is 1e-3 and weight_decay 1e-4."""

    solver: str = field(default="adamw", metadata={"choices": ("adamw", "exact")})
    """adamw: every token is an example, the weights are kept at length 1, there is no intercept
    (AxBench's training); exact: every text's mean vector is an example, and the one optimum of the
    regularised loss with an intercept is found (scikit-learn's LogisticRegression)."""
    epochs: int = 24
    batch_size: int = 12
    """Texts in a step. AxBench also sets 4 steps of accumulation, which its training ignores."""
    lr: float = 5e-3
    """Falls linearly to 0."""
    weight_decay: float = 1e-3
    C: float = 1.0
    """Inverse strength of the penalty of solver exact, as scikit-learn's."""


Config = ProbeConfig


def budget(config: ProbeConfig, n_positives: int, n_negatives: int) -> Budget:
    """Return what training takes; see `methods`."""
    return budget_of(config, n_positives + n_negatives) if config.solver == "adamw" else Budget()


def fit(task: Task, config: ProbeConfig, seed: int) -> Directions:
    """Return the classifier's unit weights, of many concepts at once."""
    vectors_CD = torch.empty(len(task), task.vectors.x_TD.shape[1], device=task.vectors.x_TD.device)
    for alike in task.labelled.alike():
        for group in _that_fit(task, alike, config):
            vectors_CD[group] = SOLVERS[config.solver](task, group, config, seed)
    return Directions(unit(vectors_CD))


CONCEPTS_AT_ONCE = 16
"""More make nothing faster, and on a CPU new memory is slower than memory used again."""


def _that_fit(task: Task, concepts: Sequence[int], config: ProbeConfig) -> Iterator[list[int]]:
    """Yield concepts whose batches fit in memory together."""
    D = task.vectors.x_TD.shape[1]
    if config.solver == "exact":
        per_concept = 3 * 8 * len(task.labelled.of(concepts[0])) * D
    else:
        per_concept = 4 * config.batch_size * int(task.vectors.length_N.max()) * (D + 8)
    size = rows_that_fit(task.memory_budget, per_concept, CONCEPTS_AT_ONCE)
    for start in range(0, len(concepts), size):
        yield list(concepts[start : start + size])


@torch.no_grad()
def _descend(task: Task, concepts: Sequence[int], config: ProbeConfig, seed: int) -> torch.Tensor:
    """Return, as (C, D), weights after AxBench's epochs, every concept with its own order of
    texts.
    """
    vectors, labelled = task.vectors, task.labelled
    D = vectors.x_TD.shape[1]
    rngs = [task.rng(concept, NAME, seed) for concept in concepts]
    start = np.stack([rng.uniform(-1, 1, D) for rng in rngs]) / math.sqrt(D)  # as torch's Linear
    w_CD = torch.nn.Parameter(torch.from_numpy(start).to(vectors.x_TD))
    optimizer = torch.optim.AdamW([w_CD], lr=config.lr, weight_decay=config.weight_decay)
    texts_CN = np.array([labelled.of(concept) for concept in concepts])
    n_positive, n_texts = len(labelled.positives[concepts[0]]), texts_CN.shape[1]
    n_steps = config.epochs * -(-n_texts // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
    for _ in range(config.epochs):
        order_CN = np.stack([rng.permutation(n_texts) for rng in rngs])
        for first in range(0, n_texts, config.batch_size):
            here_CB = order_CN[:, first : first + config.batch_size]
            x_CTD, label_CT, weight_CT = _batch(
                vectors, np.take_along_axis(texts_CN, here_CB, axis=1), here_CB < n_positive
            )
            logit_CT = torch.bmm(x_CTD, w_CD[..., None])[..., 0]
            error_CT = (logit_CT.sigmoid() - label_CT) * weight_CT
            grad_CD = torch.bmm(error_CT[:, None], x_CTD)[:, 0]
            w_CD.data = unit(w_CD.data)
            parallel_C1 = (grad_CD * w_CD).sum(dim=-1, keepdim=True)
            w_CD.grad = grad_CD - parallel_C1 * w_CD
            optimizer.step()
            schedule.step()
    return w_CD.data


def _batch(
    vectors: TokenVectors, texts_CB: np.ndarray, is_positive_CB: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return all tokens of each concept's texts, padded: vectors (C, T, D), labels and weights (C,
    T).

    The weights of a concept's tokens add up to 1; padding has none.
    """
    rows = [vectors.of(texts) for texts in texts_CB.tolist()]
    longest = max(map(len, rows))
    x_CTD = vectors.x_TD.new_zeros(len(rows), longest, vectors.x_TD.shape[1])
    label_CT, weight_CT = x_CTD.new_zeros(2, len(rows), longest)
    length_CB = vectors.length_N.long().cpu()[torch.from_numpy(texts_CB)]
    for c, x_TD in enumerate(rows):
        x_CTD[c, : len(x_TD)] = x_TD
        label = torch.from_numpy(is_positive_CB[c]).float().repeat_interleave(length_CB[c])
        label_CT[c, : len(x_TD)] = label.to(x_CTD)
        weight_CT[c, : len(x_TD)] = 1 / len(x_TD)
    return x_CTD, label_CT, weight_CT


@torch.no_grad()
def _exact(task: Task, concepts: Sequence[int], config: ProbeConfig, seed: int) -> torch.Tensor:
    """Return, as (C, D), the weights of the regularised logistic regression of the texts' means."""
    labelled, vectors = task.labelled, task.vectors
    mean_ND = vectors.sum_ND / vectors.length_N[:, None]
    x_CND = mean_ND[torch.tensor([labelled.of(concept) for concept in concepts])]
    sign_N = x_CND.new_full((x_CND.shape[1],), -1.0)
    sign_N[: len(labelled.positives[concepts[0]])] = 1.0
    return logistic_regression(x_CND, sign_N, config.C)


NEWTON_STEPS = 100


@torch.no_grad()
def logistic_regression(x_CND: torch.Tensor, sign_N: torch.Tensor, C: float = 1.0) -> torch.Tensor:
    """Return, as (C, D), for each of C data sets the w of the smallest `w @ w / 2 + C * sum(log(1 +
    exp(-sign * (x @ w + b))))`, with b free.

    The optimum is a combination of the N examples, so Newton's method needs systems of N + 1
    unknowns only, whatever D is. In float64.
    """
    x = x_CND.double()
    # Shifting x only shifts b, and what is left is smaller.
    x = x - x.mean(dim=1, keepdim=True)
    gram_CNN = x @ x.transpose(1, 2)
    sign_N = sign_N.double()
    a_CN, b_C = x.new_zeros(x.shape[:2]), x.new_zeros(len(x))

    def loss(a_CN: torch.Tensor, b_C: torch.Tensor) -> torch.Tensor:
        f_CN = (gram_CNN @ a_CN[..., None])[..., 0]
        margin_CN = sign_N * (f_CN + b_C[:, None])
        penalty_C = (a_CN * f_CN).sum(dim=-1) / 2
        return penalty_C + C * torch.nn.functional.softplus(-margin_CN).sum(dim=-1)

    for _ in range(NEWTON_STEPS):
        f_CN = (gram_CNN @ a_CN[..., None])[..., 0] + b_C[:, None]
        pull_CN = C * sign_N * torch.sigmoid(-sign_N * f_CN)
        curve_CN = (C * torch.sigmoid(f_CN) * torch.sigmoid(-f_CN)).clamp(min=1e-12)
        step_CN, step_b_C = _newton_step(gram_CNN, curve_CN, pull_CN, a_CN)
        size_C = x.new_ones(len(x))
        most_C = loss(a_CN, b_C) * (1 + 1e-12)  # rounding isn't worse
        for _ in range(30):  # halved until the loss falls
            worse_C = loss(a_CN + size_C[:, None] * step_CN, b_C + size_C * step_b_C) > most_C
            if not worse_C.any():
                break
            size_C = torch.where(worse_C, size_C / 2, size_C)
        a_CN, b_C = a_CN + size_C[:, None] * step_CN, b_C + size_C * step_b_C
        if step_CN.abs().max() < 1e-8 * C:  # no |a| is larger than C
            break
    return (a_CN[:, None] @ x)[:, 0].to(x_CND)


def _newton_step(
    gram_CNN: torch.Tensor, curve_CN: torch.Tensor, pull_CN: torch.Tensor, a_CN: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the change of a and b: `(K + 1 / curve) da + db = (pull - a) / curve`, and `sum(a +
    da) = 0`, which says that the loss no longer changes with b.
    """
    n = curve_CN.shape[1]
    system = gram_CNN.new_ones(len(gram_CNN), n + 1, n + 1)
    system[:, :n, :n] = gram_CNN + torch.diag_embed(1 / curve_CN)
    system[:, n, n] = 0
    right_CN = (pull_CN - a_CN) / curve_CN
    right = torch.cat([right_CN, -a_CN.sum(dim=-1, keepdim=True)], dim=1)
    solved = torch.linalg.solve(system, right)
    return solved[:, :n], solved[:, n]


SOLVERS = {"adamw": _descend, "exact": _exact}
"""By the name in the settings."""
