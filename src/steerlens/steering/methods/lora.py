"""LoRA: low-rank changes of the attention's output matrices at some layers, trained by PEFT.

PEFT trains on the plain Hugging Face model, because it doesn't know the modules that the bridge
puts in their place. What it has learnt is then added by hooks, to each row its own concept's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.steering.methods.row_edits import RowEdits
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import Batch, Budget, batch_of, budget_of, n_steps

NAME = "LoRA"


@dataclass
class LoraConfig:
    """AxBench's settings for Gemma-2-2B by default; for 9B layers are 12, 20, 31, 39, batch_size 9,
    accumulate 4 and lr 5e-3.
    """

    layers: tuple[int, ...] = (5, 10, 15, 20)
    target: str = "o_proj"
    """The attention's output matrix, as the Hugging Face model calls it."""
    rank: int = 4
    alpha: int = 32
    """The change is scaled by alpha / sqrt(rank) (rank-stabilised, as AxBench sets PEFT)."""
    dropout: float = 0.05
    epochs: int = 24
    batch_size: int = 18
    """Positives in a batch; negatives aren't used."""
    accumulate: int = 2
    """Batches in a step, of whose gradients the mean is taken."""
    lr: float = 9e-4
    """Falls linearly to 0."""
    weight_decay: float = 0.0


Config = LoraConfig


def budget(config: LoraConfig, n_positives: int, n_negatives: int) -> Budget:
    """Return what training takes; see `methods`."""
    return budget_of(config, n_positives)


def smaller(n_layers: int) -> LoraConfig:
    """Return smaller settings, for a model of `n_layers` that trains on a CPU: every other
    layer, a quarter of the epochs at four times the rate.
    """
    return LoraConfig(layers=tuple(range(1, n_layers, 2)), epochs=6, accumulate=1, lr=4e-3)


@dataclass(frozen=True)
class Lora:
    """The changes of C concepts at each layer; r is the rank."""

    down: dict[int, torch.Tensor]
    """(C, r, d_in)."""
    up: dict[int, torch.Tensor]
    """(C, d_out, r), scaled."""

    def __len__(self) -> int:
        return len(next(iter(self.up.values())))


def join_lora(parts: Sequence[Lora]) -> Lora:
    """Stack the changes of several groups of concepts that have the same layers."""
    return Lora(
        *(
            {layer: torch.cat([side[layer] for side in sides]) for layer in sides[0]}
            for sides in ([part.down for part in parts], [part.up for part in parts])
        )
    )


def learn(task: Task, config: LoraConfig, seed: int, hf_model: Any) -> Lora:
    """Return the changes of all concepts, trained one by one to make their positives' answers
    likely.

    Args:
        task: the concepts.
        config: the settings.
        seed: what is drawn by.
        hf_model: the subject's model as Transformers loads it (`subject.model.load_weights`), not
            the bridge's; as it was afterwards.

    Raises:
        SteerlensError: for layers or a matrix that the model doesn't have.
    """
    for parameter in hf_model.parameters():
        parameter.requires_grad_(False)
    changes_of = [_train(task, concept, config, seed, hf_model) for concept in range(len(task))]
    return Lora(
        *(
            {
                layer: torch.stack([change[layer][kind] for change in changes_of])
                for layer in config.layers
            }
            for kind in range(2)
        )
    )


def _train(
    task: Task, concept: int, config: LoraConfig, seed: int, hf_model: Any
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    rng = task.rng(concept, NAME, seed)
    texts = task.labelled.positives[concept]
    was_training = hf_model.training
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.integers(2**62)))  # PEFT's start, and dropout
        model = _with_lora(hf_model, config)
        try:
            model.train()
            _descend(task, model, texts, config, rng)
            changes = _changes(model, config)
        finally:
            model.unload()
            hf_model.train(was_training)
    task.progress(1)
    return changes


def _with_lora(hf_model: Any, config: LoraConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    n_layers = hf_model.config.get_text_config().num_hidden_layers
    for layer in config.layers:
        if not 0 <= layer < n_layers:
            raise SteerlensError(
                f"LoRA's layer {layer} is out of range: the model has layers 0 to {n_layers - 1}."
            )
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=[config.target],
        layers_to_transform=list(config.layers),
        lora_dropout=config.dropout,
        use_rslora=True,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(hf_model, lora)
    except ValueError as error:
        line = (str(error).strip().splitlines() or ["?"])[0]
        raise SteerlensError(
            f"PEFT can't change {config.target!r} of this model: {line}"
        ) from error


def _descend(task: Task, model: Any, texts: Sequence[int], config: LoraConfig, rng: Any) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    n_batches = n_steps(len(texts), 1, config.batch_size)
    steps = config.epochs * max(1, n_batches // config.accumulate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / steps))
    for _ in range(config.epochs):
        order = rng.permutation(len(texts))
        for number in range(n_batches):
            batch = order[number * config.batch_size :][: config.batch_size]
            loss = _loss(model, batch_of(task, [(0, texts[k]) for k in batch]))
            (loss / config.accumulate).backward()
            if (number + 1) % config.accumulate == 0 or number + 1 == n_batches:
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def _loss(model: Any, batch: Batch) -> torch.Tensor:
    device = model.device
    tokens_RL, goal_RL = batch.tokens_RL.to(device), batch.goal_RL.to(device)
    labels_RL = tokens_RL.masked_fill(~goal_RL, -100)
    return model(input_ids=tokens_RL, labels=labels_RL, use_cache=False).loss


def _changes(model: Any, config: LoraConfig) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return by layer, what PEFT has learnt."""
    by_layer: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        parts = name.split(".")
        layer = next(int(part) for part in parts if part.isdigit())
        down = module.lora_A["default"].weight.detach().float().clone()
        up = module.lora_B["default"].weight.detach().float() * module.scaling["default"]
        by_layer[layer] = (down, up)
    if sorted(by_layer) != sorted(config.layers):
        raise SteerlensError(
            f"PEFT has changed layers {sorted(by_layer)}, not {list(config.layers)}."
        )
    return by_layer


class LoraEdits(RowEdits):
    """LoRA in rows of a batch, at all positions of the prompt and of the new tokens."""

    def __init__(
        self, subject: Subject, lora: Lora, concept_B: Sequence[int], factor_B: Sequence[float]
    ) -> None:
        super().__init__(subject, len(lora), concept_B, factor_B)
        self._lora = lora
        self._seen: dict[int, torch.Tensor] = {}

    def _hooks(self) -> list[tuple[str, Any]]:
        hooks: list[tuple[str, Any]] = []
        for layer in self._lora.up:
            module = f"blocks.{layer}.attn.o"
            hooks.append((f"{module}.hook_in", partial(self._read, layer=layer)))
            hooks.append((f"{module}.hook_out", partial(self._write, layer=layer)))
        return hooks

    def _read(self, x: torch.Tensor, hook: Any, layer: int) -> None:
        self._seen[layer] = x.flatten(2)

    def _write(self, out_BLD: torch.Tensor, hook: Any, layer: int) -> torch.Tensor:
        concept_B, factor_B11 = self._rows(out_BLD)
        down_BrZ = self._lora.down[layer].to(out_BLD.device)[concept_B]
        up_BDr = self._lora.up[layer].to(out_BLD.device)[concept_B]
        x_BLZ = self._seen.pop(layer).to(down_BrZ)
        change_BLD = x_BLZ @ down_BrZ.transpose(1, 2) @ up_BDr.transpose(1, 2)
        self.fired += layer == max(self._lora.up)
        return out_BLD + (factor_B11 * change_BLD).to(out_BLD)
