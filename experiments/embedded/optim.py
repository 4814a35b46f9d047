"""Optimizers and learning-rate schedule of the language model."""

from __future__ import annotations

import time

import torch
from families import block_matrices
from muon import BatchedMuon
from settings import TrainingSettings
from torch import Tensor
from transformers import PreTrainedModel


class Optimizers:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""

    def __init__(self, model: PreTrainedModel, settings: TrainingSettings) -> None:
        self.model, self.settings = model, settings
        linear, transposed = block_matrices(model) if settings.optimizer == "muon" else ([], [])
        inside = {id(p) for p in linear + transposed}
        rest = [p for p in model.parameters() if id(p) not in inside]
        decayed = {"params": [p for p in rest if p.ndim == 2]}
        plain = {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [decayed, plain],
                lr=settings.adam_lr,
                betas=(0.9, 0.95),
                weight_decay=settings.weight_decay,
                fused=True,
            )
        ]
        if inside:
            groups = [{"params": linear}, {"params": transposed, "transposed": True}]
            self.all.append(
                BatchedMuon(
                    [group for group in groups if group["params"]],
                    lr=settings.muon_lr,
                    weight_decay=settings.weight_decay,
                    dtype=torch.bfloat16 if settings.bf16 else torch.float32,
                )
            )
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.all]

    def step(self, scale: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in zip(self.all, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """State as flat tensors, so that a checkpoint needs no pickle."""
        flat = {}
        for index, optimizer in enumerate(self.all):
            for key, state in optimizer.state_dict()["state"].items():
                flat |= {f"{index}/{key}/{name}": value for name, value in state.items()}
        return flat

    def load(self, flat: dict[str, Tensor]) -> None:
        for index, optimizer in enumerate(self.all):
            state: dict[int, dict[str, Tensor]] = {}
            for path, value in flat.items():
                owner, key, name = path.split("/")
                if int(owner) == index:
                    state.setdefault(int(key), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class Schedule:
    """Warmup, constant, linear decay; the decay starts by token budget or by the clock."""

    def __init__(
        self, settings: TrainingSettings, tokens_per_step: int, plan: list[int] | None = None
    ) -> None:
        self.settings = settings
        self.total = settings.tokens // tokens_per_step
        self.decay_from = int(self.total * (1 - settings.decay_share))
        self.fixed = plan is not None
        if plan is not None:  # a decay that had begun goes on as planned
            self.decay_from, self.total = plan

    def plan(self) -> list[int] | None:
        """What a checkpoint must keep: set once the decay has begun."""
        return [self.decay_from, self.total] if self.fixed else None

    def end_by(self, stop_at: float, step: int, seconds_per_step: float) -> None:
        """Fix the decay once the steps left are `decay_share` of what the clock allows."""
        if self.fixed:
            return
        left = max(1, int((stop_at - time.time()) / seconds_per_step))
        self.total = step + left
        self.decay_from = int(self.total * (1 - self.settings.decay_share))
        self.fixed = step >= self.decay_from

    def scale(self, step: int) -> float:
        if step < self.settings.warmup_steps:
            return (step + 1) / self.settings.warmup_steps
        if step < self.decay_from:
            return 1.0
        return max(0.0, (self.total - step) / max(1, self.total - self.decay_from))
