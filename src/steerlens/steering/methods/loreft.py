"""LoReFT: low-rank edits of the residual stream at some layers and positions of the prompt.

`h + R.T (W h + b - R h)`, the rows of R orthonormal (Wu et al. 2024), with R, W and b of its own
for every layer and concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.steering.methods.row_edits import RowEdits
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import (
    Budget,
    batch_of,
    budget_of,
    clip_rows,
    goal_losses,
    groups_that_fit,
    n_steps,
)

NAME = "LoReFT"


@dataclass
class LoreftConfig:
    """AxBench's settings for Gemma-2-2B by default; for 9B layers are 12, 20, 31, 39, batch_size 9,
    accumulate 4 and lr 4e-4.
    """

    layers: tuple[int, ...] = (5, 10, 15, 20)
    rank: int = 4
    first: int = field(default=5, metadata={"least": 0})
    last: int = field(default=5, metadata={"least": 0})
    """How many of the prompt's first and last positions are edited, each at most half of them."""
    epochs: int = 24
    batch_size: int = 18
    """Positives in a batch; negatives aren't used."""
    accumulate: int = 2
    """Batches in a step; their gradients are added (AxBench's code)."""
    lr: float = 9e-4
    """Falls linearly to 0."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest length of a step's gradient."""


Config = LoreftConfig


def budget(config: LoreftConfig, n_positives: int, n_negatives: int) -> Budget:
    """Return what training takes; see `methods`."""
    return budget_of(config, n_positives)


def smaller(n_layers: int) -> LoreftConfig:
    """Return smaller settings, for a model of `n_layers` that trains on a CPU: every other
    layer, a quarter of the epochs at four times the rate.
    """
    return LoreftConfig(layers=tuple(range(1, n_layers, 2)), epochs=6, accumulate=1, lr=4e-3)


@dataclass(frozen=True)
class Loreft:
    """The edits of C concepts at each layer; r is the rank."""

    rotate: dict[int, torch.Tensor]
    """(C, D, r): R.T, its columns orthonormal."""
    weight: dict[int, torch.Tensor]
    """(C, D, r): W.T."""
    bias: dict[int, torch.Tensor]
    """(C, r)."""
    first: int
    last: int

    def __len__(self) -> int:
        return len(next(iter(self.bias.values())))

    def change(self, layer: int, x_BLD: torch.Tensor, concept_B: torch.Tensor) -> torch.Tensor:
        """Return, as (B, L, D), what is added where the positions are edited."""
        rotate_BDr, weight_BDr = self.rotate[layer][concept_B], self.weight[layer][concept_B]
        x_BLD = x_BLD.to(rotate_BDr)
        wanted_BLr = x_BLD @ weight_BDr + self.bias[layer][concept_B][:, None]
        return (wanted_BLr - x_BLD @ rotate_BDr) @ rotate_BDr.transpose(1, 2)


def join_loreft(parts: Sequence[Loreft]) -> Loreft:
    """Stack the edits of several groups of concepts that have the same layers and positions."""

    def stacked(name: str) -> dict[int, torch.Tensor]:
        layers = getattr(parts[0], name)
        return {
            layer: torch.cat([getattr(part, name)[layer] for part in parts]) for layer in layers
        }

    return replace(
        parts[0], rotate=stacked("rotate"), weight=stacked("weight"), bias=stacked("bias")
    )


def edited_positions(
    n_prompt_B: torch.Tensor, length: int, first: int, last: int, starts_B: torch.Tensor
) -> torch.Tensor:
    """Return, as (B, L), the prompt's first and last positions; a row's prompt begins at
    `starts_B`.
    """
    place_BL = torch.arange(length) - starts_B[:, None]
    half_B1 = (n_prompt_B // 2)[:, None]
    at_first = (place_BL >= 0) & (place_BL < half_B1.clamp(max=first))
    at_last = (place_BL < n_prompt_B[:, None]) & (
        place_BL >= n_prompt_B[:, None] - half_B1.clamp(max=last)
    )
    return at_first | at_last


def learn(task: Task, config: LoreftConfig, seed: int) -> Loreft:
    """Return the edits of all concepts, trained to make their positives' answers likely (AxBench).

    Raises:
        SteerlensError: for layers that the model doesn't have.
    """
    n_layers = task.subject.lm.n_layers
    for layer in config.layers:
        if not 0 <= layer < n_layers:
            raise SteerlensError(
                f"LoReFT's layer {layer} is out of range: {task.subject.lm.name} has layers 0 to "
                f"{n_layers - 1}."
            )
    rows: dict[int, list[torch.Tensor]] = {}
    for alike in task.labelled.alike():
        for group in groups_that_fit(task, alike, config.batch_size):
            trained = _train(task, group, config, seed)
            for index, concept in enumerate(group):
                rows[concept] = [tensor_of[index] for tensor_of in trained]
            task.progress(len(group))
    stacked = [
        torch.stack(parts) for parts in zip(*(rows[c] for c in range(len(task))), strict=True)
    ]
    return _from_tensors(stacked, config)


def _from_tensors(tensors: Sequence[torch.Tensor], config: LoreftConfig) -> Loreft:
    """Return from R.T, W.T and b of every layer in turn."""
    by_layer = [dict(zip(config.layers, tensors[kind::3], strict=True)) for kind in range(3)]
    return Loreft(*by_layer, first=config.first, last=config.last)


class _Rotation(torch.nn.Module):
    """(C, D, r) with orthonormal columns, whatever its parameter is."""

    def __init__(self, start_CDr: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(start_CDr)


def _train(
    task: Task, concepts: Sequence[int], config: LoreftConfig, seed: int
) -> list[torch.Tensor]:
    device, D, r = task.subject.lm.device, task.subject.lm.d_model, config.rank
    rngs = [task.rng(concept, NAME, seed) for concept in concepts]
    rotations, weights, biases = [], [], []
    for _ in config.layers:
        draws = [torch.from_numpy(rng.standard_normal((D, r))).float() for rng in rngs]
        rotation = _Rotation(torch.linalg.qr(torch.stack(draws)).Q.to(device))
        # Householder reflections alone: the default adds a random (D, D) base for every concept.
        orthogonal = torch.nn.utils.parametrizations.orthogonal
        rotations.append(orthogonal(rotation, use_trivialization=False))
        bound = D**-0.5  # as torch's Linear
        draws = [torch.from_numpy(rng.uniform(-bound, bound, (D + 1, r))).float() for rng in rngs]
        start = torch.stack(draws).to(device)
        weights.append(torch.nn.Parameter(start[:, :D].clone()))
        biases.append(torch.nn.Parameter(start[:, D].clone()))
    raw = [rotation.parametrizations.weight.original for rotation in rotations]
    parameters: list[Any] = [*raw, *weights, *biases]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    of = [task.labelled.positives[concept] for concept in concepts]
    n_batches = n_steps(len(of[0]), 1, config.batch_size)
    steps = config.epochs * max(1, n_batches // config.accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / steps))

    def current() -> list[torch.Tensor]:
        tensors = zip((layer.weight for layer in rotations), weights, biases, strict=True)
        return [tensor for layer in tensors for tensor in layer]

    for _ in range(config.epochs):
        orders = [rng.permutation(len(of[0])) for rng in rngs]
        for number in range(n_batches):
            batch = slice(number * config.batch_size, (number + 1) * config.batch_size)
            rows = [(c, of[c][k]) for c, order in enumerate(orders) for k in order[batch]]
            _losses(task, rows, _from_tensors(current(), config), len(of)).sum().backward()
            if (number + 1) % config.accumulate == 0 or number + 1 == n_batches:
                _clip(parameters, config.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return [tensor.detach().clone() for tensor in current()]


def _losses(
    task: Task, rows: Sequence[tuple[int, int]], loreft: Loreft, n_concepts: int
) -> torch.Tensor:
    batch = batch_of(task, rows)
    n_prompt_B = torch.tensor([task.labelled.texts[text].n_prompt for text in batch.texts])
    edited_BL = edited_positions(
        n_prompt_B,
        batch.tokens_RL.shape[1],
        loreft.first,
        loreft.last,
        torch.zeros_like(n_prompt_B),
    )

    def write(x_BLD: torch.Tensor, hook: Any, layer: int) -> torch.Tensor:
        change_BLD = loreft.change(layer, x_BLD, batch.concept_R.to(x_BLD.device))
        return x_BLD + (change_BLD * edited_BL.to(x_BLD.device)[..., None]).to(x_BLD)

    hooks = [(_hook(layer), partial(write, layer=layer)) for layer in loreft.bias]
    return goal_losses(task.subject, batch, batch.tokens_RL, hooks, n_concepts)


def _clip(parameters: Sequence[torch.Tensor], longest: float) -> None:
    """Cut each concept's gradient over all parameters to a length."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([grad.flatten(1) for grad in grads], dim=1)
    cut = clip_rows(flat, longest).split([grad[0].numel() for grad in grads], dim=1)
    for grad, new in zip(grads, cut, strict=True):
        grad.copy_(new.reshape(grad.shape))


def _hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


class LoreftEdits(RowEdits):
    """LoReFT in rows of a batch: the prompt is edited, and new tokens see it through attention."""

    edits_new_tokens = False

    def __init__(
        self,
        subject: Subject,
        loreft: Loreft,
        concept_B: Sequence[int],
        factor_B: Sequence[float],
        n_prompt_B: Sequence[int],
    ) -> None:
        """`n_prompt_B` are the prompts' lengths in tokens, BOS included; in a batch they end at the
        same position.
        """
        super().__init__(subject, len(loreft), concept_B, factor_B)
        self._loreft = loreft
        self._n_prompt_B = torch.tensor(n_prompt_B)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        super().select(rows)
        self._n_prompt_B = self._n_prompt_B[rows]

    def _hooks(self) -> list[tuple[str, Any]]:
        return [(_hook(layer), partial(self._write, layer=layer)) for layer in self._loreft.bias]

    def _write(self, x_BLD: torch.Tensor, hook: Any, layer: int) -> torch.Tensor:
        if not self.is_prompt:
            return x_BLD
        concept_B, factor_B11 = self._rows(x_BLD)
        length = x_BLD.shape[1]
        n_prompt_B = self._n_prompt_B.expand(len(x_BLD))
        edited_BL = edited_positions(
            n_prompt_B, length, self._loreft.first, self._loreft.last, length - n_prompt_B
        )
        change_BLD = factor_B11 * self._loreft.change(layer, x_BLD, concept_B)
        self.fired += layer == max(self._loreft.bias)
        return x_BLD + (change_BLD * edited_BL.to(x_BLD.device)[..., None]).to(x_BLD)
