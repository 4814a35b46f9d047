"""Third stage: train the language model on the CPU, resumably.

`python lm.py --stop-at 12:00` begins the decay (warmup, constant, linear decay) early enough to
finish then, whatever the speed turned out to be; without it, the token budget decides.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from loss import chunked_cross_entropy
from prepare import load_rows, load_sizes
from safetensors.torch import load_file, save_file
from settings import Settings, TrainingSettings
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

LOG_EVERY = 20


def build_model(settings: Settings) -> LlamaForCausalLM:
    shape = settings.model
    torch.manual_seed(settings.training.seed)
    config = LlamaConfig(
        vocab_size=settings.tokenizer.vocabulary,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        intermediate_size=shape.d_mlp,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


class Optimizers:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""

    def __init__(self, model: LlamaForCausalLM, settings: TrainingSettings) -> None:
        self.model, self.settings = model, settings
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        inside = {id(p) for p in matrices}
        if settings.optimizer == "adamw":
            matrices, inside = [], set()
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
        if matrices:
            self.all.append(
                torch.optim.Muon(
                    matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay
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

    def __init__(self, settings: TrainingSettings, tokens_per_step: int) -> None:
        self.settings = settings
        self.total = settings.tokens // tokens_per_step
        self.decay_from = int(self.total * (1 - settings.decay_share))
        self.fixed = False

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


def loss_of(
    model: LlamaForCausalLM, body: Any, rows: Tensor, bf16: bool, labels: Tensor | None = None
) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = body(input_ids=rows, use_cache=False).last_hidden_state
    hidden = hidden[:, :-1].flatten(0, 1)
    targets = (rows if labels is None else labels)[:, 1:].flatten()
    hidden = hidden.bfloat16() if bf16 else hidden.float()
    return chunked_cross_entropy(hidden, model.lm_head.weight, targets)


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, rows: Tensor) -> float:
    """Mean nats per token in float32."""
    model.eval()
    losses = [
        model(input_ids=part, labels=part, use_cache=False).loss.item() * len(part)
        for part in rows.long().split(32)
    ]
    model.train()
    return sum(losses) / len(rows)


def bits_per_byte(nats_per_token: float, settings: Settings) -> float:
    sizes = load_sizes(settings)["validation"]
    return nats_per_token / math.log(2) * sizes["tokens"] / sizes["bytes"]


def save_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizers: Optimizers, progress: dict[str, Any]
) -> None:
    """Write beside, then rename: an interrupted save leaves the old one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model/{name}": p.contiguous() for name, p in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("model/lm_head.weight")
    state = {f"optimizer/{name}": t.contiguous() for name, t in optimizers.tensors().items()}
    partial = folder / "state.partial"
    save_file({**weights, **state}, partial, metadata={"progress": json.dumps(progress)})
    os.replace(partial, folder / "state.safetensors")
    (folder / "progress.json").write_text(json.dumps(progress, indent=1) + "\n")


def load_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizers: Optimizers | None = None
) -> dict[str, Any]:
    tensors = load_file(folder / "state.safetensors")

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(under("model/"), strict=not model.config.tie_word_embeddings)
    if optimizers is not None:
        optimizers.load(under("optimizer/"))
    progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return progress


def train(settings: Settings, stop_at: float | None = None, resume: bool = True) -> dict[str, Any]:
    chosen = settings.training
    model = build_model(settings)
    optimizers = Optimizers(model, chosen)
    progress: dict[str, Any] = {"step": 0, "minutes": 0.0, "history": []}
    if resume and (settings.checkpoint / "state.safetensors").exists():
        progress = load_checkpoint(settings.checkpoint, model, optimizers)
    rows = load_rows(settings, "train")
    held_out = load_rows(settings, "validation")[: chosen.validation_rows]
    body = torch.compile(model.model) if chosen.compile else model.model
    per_step = chosen.batch * settings.model.context
    schedule = Schedule(chosen, per_step)
    if progress.get("decay"):  # a decay that had begun goes on as planned
        schedule.decay_from, schedule.total = progress["decay"]
        schedule.fixed = True
    step, started, spent = progress["step"], time.time(), 60 * progress["minutes"]
    saved, pace, running = time.time(), 0.0, 0.0
    while step < schedule.total:
        if step % (len(rows) // chosen.batch) == 0 or step == progress["step"]:
            epoch = step // (len(rows) // chosen.batch)
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))
        tick = time.time()
        at = step % (len(rows) // chosen.batch) * chosen.batch
        loss = loss_of(model, body, rows[order[at : at + chosen.batch]].long(), chosen.bf16)
        loss.backward()
        optimizers.step(schedule.scale(step))
        step += 1
        took = time.time() - tick
        # A pause (SIGSTOP) or the compilation must not count as slowness.
        pace = took if pace == 0.0 or step < 5 else 0.98 * pace + 0.02 * min(took, 3 * pace)
        running = loss.item() if running == 0.0 else 0.98 * running + 0.02 * loss.item()
        if stop_at is not None and step > 5:
            schedule.end_by(stop_at, step, pace)
        progress |= {"step": step, "tokens": step * per_step, "epochs": step * chosen.batch / len(rows)}
        progress["minutes"] = (spent + time.time() - started) / 60
        progress["decay"] = [schedule.decay_from, schedule.total] if schedule.fixed else None
        if step % LOG_EVERY == 0:
            line = f"{step}/{schedule.total} loss {running:.3f} lr x{schedule.scale(step):.3f}"
            print(f"{line} {per_step / pace:.0f} tok/s {progress['minutes']:.1f} min", flush=True)
        if time.time() - saved > 60 * chosen.checkpoint_minutes or step >= schedule.total:
            value = validation_loss(model, held_out)
            progress["history"].append({"step": step, "validation_loss": value})
            print(f"{step} validation {value:.4f}", flush=True)
            save_checkpoint(settings.checkpoint, model, optimizers, progress)
            saved = time.time()
    return progress


def parse_clock(text: str) -> float:
    """Seconds since the epoch of the next HH:MM."""
    now = datetime.now()
    hour, minute = map(int, text.split(":"))
    moment = now.replace(hour=hour, minute=minute, second=0)
    return (moment if moment > now else moment + timedelta(days=1)).timestamp()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=Settings().scratch)
    parser.add_argument("--stop-at", help="HH:MM")
    arguments = parser.parse_args()
    chosen_settings = Settings(scratch=arguments.scratch)
    torch.set_num_threads(chosen_settings.threads)
    stop = parse_clock(arguments.stop_at) if arguments.stop_at else None
    result = train(chosen_settings, stop)
    print(json.dumps({**result, "settings": asdict(chosen_settings.training)}, default=str))
