"""Measure the shipped files themselves: the numbers of the card come from here only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from families import blocks
from sae_lens import SAE
from torch import Tensor
from transformers import PreTrainedModel

BATCH = 32


def load_sae(folder: Path) -> SAE:
    return SAE.load_from_disk(folder, device="cpu", dtype="float32").eval()


@torch.no_grad()
def residuals(model: PreTrainedModel, rows: Tensor) -> list[Tensor]:
    """Residual stream after each block [N, D], without the positions of BOS."""
    kept: list[list[Tensor]] = [[] for _ in blocks(model)]
    hooks = []
    for layer, block in enumerate(blocks(model)):
        hooks.append(block.register_forward_hook(_keeper(kept[layer])))
    try:
        for part in rows.long().split(BATCH):
            model.base_model(input_ids=part, use_cache=False)
            inside = (part != model.config.bos_token_id).flatten()
            for store in kept:
                store[-1] = store[-1][inside]
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(store) for store in kept]


def _keeper(store: list[Tensor]):
    def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        store.append(hidden.detach().flatten(0, 1))

    return keep


@torch.no_grad()
def reconstruction(sae: SAE, acts_ND: Tensor) -> dict[str, float]:
    """Explained variance, features at work per token, and features that never fire."""
    centre = acts_ND.mean(0)
    error = total = active = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for part in acts_ND.split(4096):
        features = sae.encode(part)
        error += (part - sae.decode(features)).pow(2).sum().item()
        total += (part - centre).pow(2).sum().item()
        on = features > 0
        active += on.sum().item()
        fired |= on.any(0)
    return {
        "explained_variance": 1 - error / total,
        "l0": active / len(acts_ND),
        "dead_share": 1 - fired.float().mean().item(),
    }


@contextmanager
def spliced(model: PreTrainedModel, layer: int, sae: SAE | None) -> Iterator[None]:
    """Replace the residual stream by its reconstruction (or by zero), except at position 0."""

    def replace(_module: object, _inputs: object, output: Tensor) -> Tensor:
        new = torch.zeros_like(output) if sae is None else sae.decode(sae.encode(output))
        new[:, 0] = output[:, 0]  # SAEs are not trained on BOS
        return new

    hook = blocks(model)[layer].register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def cross_entropy(model: PreTrainedModel, rows: Tensor) -> float:
    losses = [
        model(input_ids=part, labels=part, use_cache=False).loss.item() * len(part)
        for part in rows.long().split(BATCH)
    ]
    return sum(losses) / len(rows)


class Splicing:
    """Loss with one layer replaced, between zero ablation (0) and the clean model (1)."""

    def __init__(self, model: PreTrainedModel, rows: Tensor) -> None:
        self.model, self.rows = model, rows
        self.clean = cross_entropy(model, rows)
        self.zeroed = [self._loss(layer, None) for layer in range(len(blocks(model)))]

    def measure(self, layer: int, sae: SAE) -> dict[str, float]:
        loss, zeroed = self._loss(layer, sae), self.zeroed[layer]
        return {
            "ce_clean": self.clean,
            "ce_spliced": loss,
            "ce_recovered": (zeroed - loss) / (zeroed - self.clean),
        }

    def _loss(self, layer: int, sae: SAE | None) -> float:
        with spliced(self.model, layer, sae):
            return cross_entropy(self.model, self.rows)
