"""Third stage: train the language model on the CPU, resumably.

`python lm.py --stop-at 12:00` begins the decay (warmup, constant, linear decay) early enough to
finish then, whatever the speed turned out to be; without it, the token budget decides.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from families import build_config, unembedding
from loss import chunked_cross_entropy
from optim import Optimizers, Schedule
from prepare import load_rows, load_sizes
from safetensors.torch import load_file, save_file
from settings import Settings
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

LOG_EVERY = 20


def build_model(settings: Settings) -> PreTrainedModel:
    torch.manual_seed(settings.training.seed)
    return AutoModelForCausalLM.from_config(build_config(settings), dtype=torch.float32)


def loss_of(
    model: PreTrainedModel, body: Any, rows: Tensor, bf16: bool, labels: Tensor | None = None
) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = body(input_ids=rows, use_cache=False).last_hidden_state
    hidden = hidden[:, :-1].flatten(0, 1)
    targets = (rows if labels is None else labels)[:, 1:].flatten()
    hidden = hidden.bfloat16() if bf16 else hidden.float()
    return chunked_cross_entropy(hidden, unembedding(model), targets)


@torch.no_grad()
def validation_loss(model: PreTrainedModel, rows: Tensor) -> float:
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
    folder: Path, model: PreTrainedModel, optimizers: Optimizers, progress: dict[str, Any]
) -> None:
    """Write beside, then rename: an interrupted save leaves the old one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model/{name}": p.contiguous() for name, p in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("model/lm_head.weight")
    state = {f"optimizer/{name}": t.contiguous() for name, t in optimizers.tensors().items()}
    partial = folder / "state.partial"
    save_file({**weights, **state}, partial, metadata={"progress": json.dumps(progress)})
    partial.replace(folder / "state.safetensors")
    (folder / "progress.json").write_text(json.dumps(progress, indent=1) + "\n")


def load_checkpoint(
    folder: Path, model: PreTrainedModel, optimizers: Optimizers | None = None
) -> dict[str, Any]:
    tensors = load_file(folder / "state.safetensors")

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(under("model/"), strict=not model.config.tie_word_embeddings)
    if optimizers is not None:
        optimizers.load(under("optimizer/"))
    progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return progress


class Pace:
    """Seconds per step, smoothed; compilation and pauses (SIGSTOP) are not slowness."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0

    def update(self, took: float) -> None:
        self.steps += 1
        if self.steps < 5:
            self.seconds = took
        else:
            self.seconds = 0.98 * self.seconds + 0.02 * min(took, 3 * self.seconds)


def batches(rows: Tensor, batch: int, first_step: int) -> Iterator[Tensor]:
    """Endless shuffled batches, the same whether or not training was interrupted before."""
    per_epoch = len(rows) // batch
    step = first_step
    while True:
        epoch = step // per_epoch
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))
        for at in range(step % per_epoch, per_epoch):
            yield rows[order[at * batch : (at + 1) * batch]].long()
        step = (epoch + 1) * per_epoch


def train(settings: Settings, stop_at: float | None = None, resume: bool = True) -> dict[str, Any]:
    """Train to the end of the schedule, from the checkpoint if there is one."""
    chosen = settings.training
    model = build_model(settings)
    optimizers = Optimizers(model, chosen)
    progress: dict[str, Any] = {"step": 0, "minutes": 0.0, "history": [], "decay": None}
    if resume and (settings.checkpoint / "state.safetensors").exists():
        progress = load_checkpoint(settings.checkpoint, model, optimizers)
    rows = load_rows(settings, "train")
    held_out = load_rows(settings, "validation")[: chosen.validation_rows]
    body = torch.compile(model.base_model) if chosen.compile else model.base_model
    per_step = chosen.batch * settings.model.context
    schedule = Schedule(chosen, per_step, progress["decay"])
    pace, saved, last = Pace(), time.time(), time.time()
    stream = batches(rows, chosen.batch, progress["step"])
    while (step := progress["step"]) < schedule.total:
        loss = loss_of(model, body, next(stream), chosen.bf16)
        loss.backward()
        optimizers.step(schedule.scale(step))
        step += 1
        now = time.time()
        pace.update(now - last)
        progress["minutes"] += (now - last) / 60
        last = now
        if stop_at is not None and pace.steps > 5:
            schedule.end_by(stop_at, step, pace.seconds)
        progress |= {"step": step, "tokens": step * per_step, "decay": schedule.plan()}
        progress["epochs"] = step * chosen.batch / len(rows)
        if step % LOG_EVERY == 0:
            line = f"{step}/{schedule.total} loss {loss.item():.3f} lr x{schedule.scale(step):.3f}"
            print(f"{line} {per_step / pace.seconds:.0f} tok/s", flush=True)
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
