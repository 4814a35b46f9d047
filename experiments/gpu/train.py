"""Train the default's SAEs on a GPU, on text that is sampled and encoded there and never stored.

    python -m experiments.gpu.train --model DIR --scratch DIR --target DIR --seconds 300

A round samples `--rows` texts, adds rows of documents, encodes both and trains all SAEs of both
releases on the activations once, in an order drawn at random. The learning rate follows the clock,
or `--steps` if these come first. A run that was stopped goes on from its last checkpoint. Settings
that `experiments.smollm2` has (layers, releases, context, what is held out) come from there.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.gpu.llama import END_ID, Llama, Sampler, load, residuals
from experiments.gpu.stack import Stack, new_stack, optimiser, take_step, trainee
from experiments.smollm2.activations import (
    BOS_ID,
    CONTEXT,
    HELD_OUT_SAMPLES,
    LAYERS,
    Rows,
    write,
)
from experiments.smollm2.sample import prompts
from experiments.smollm2.step import Settings
from experiments.smollm2.train import LR, MAX_NORM, RELEASES, cap_norms, save_sae, schedule

ENCODED_ROWS = 128
"""Rows in one forward."""
FIRST_TOKENS = 32_640
"""Activations that set scale, bias and the longest norm, as many as a shard of the CPU's path."""
SAVE_ROUNDS = 5
SHOWN_ROWS = 8_000
"""Rows of written text that are brought back for the corpus pass: 2M tokens."""
HELD_OUT_SEED = 10**6
ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Progress:
    """How far the training is."""

    rounds: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


def take_rows(rows: np.ndarray, first: int, n: int) -> np.ndarray:
    """Return rows `first` to `first + n` of an endless sequence: all, then all in another order."""
    epochs = range(first // len(rows), (first + n - 1) // len(rows) + 1)
    order = np.concatenate(
        [np.random.default_rng(epoch).permutation(len(rows)) for epoch in epochs]
    )
    start = first - epochs[0] * len(rows)
    return rows[order[start : start + n]]


def written_rows(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    nouns: list[str],
    n_rows: int,
    seed: int,
) -> np.ndarray:
    """Let the model write; return rows `[N, CONTEXT]`, BOS first, of texts that didn't end."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    texts: list[str] = []
    while len(texts) < n_rows:
        texts += prompts(tokenizer, nouns, rng)
    rng.shuffle(texts)
    ids = tokenizer(texts[:n_rows], add_special_tokens=False)["input_ids"]
    rows = sampler.write(ids).cpu().numpy().astype(np.uint16)
    rows = rows[~(rows == END_ID).any(axis=1)]
    shifted = np.pad(rows[:, :-1], ((0, 0), (1, 0)), constant_values=BOS_ID)
    return np.where(rows[:, :1] == BOS_ID, rows, shifted)


def encode(lm: Llama, rows: np.ndarray, layers: Sequence[int]) -> Tensor:
    """Return activations `[N, n_layers, D]` of all tokens but position 0, in bfloat16."""
    n_tokens, d_model = len(rows) * (rows.shape[1] - 1), lm.embedding.shape[1]
    acts = torch.empty(n_tokens, len(layers), d_model, dtype=torch.bfloat16, device=lm.device)
    ids = torch.from_numpy(rows.astype(np.int64)).to(lm.device)
    start = 0
    for part in ids.split(ENCODED_ROWS):
        encoded = residuals(lm, part, layers)[:, 1:].flatten(0, 1)
        acts[start : start + len(encoded)] = encoded
        start += len(encoded)
    return acts


def save_checkpoint(
    file: Path,
    stacks: dict[str, Stack],
    adams: dict[str, torch.optim.Adam],
    caps_L11: Tensor,
    progress: Progress,
) -> None:
    tensors = {"caps": caps_L11}
    for name, value in asdict(progress).items():
        tensors[f"progress.{name}"] = torch.tensor(value, dtype=torch.float64)
    for name, stack in stacks.items():
        for key in ("scale_L", "steps_since_fired_LF", "threshold_L"):
            tensors[f"{name}.{key}"] = getattr(stack, key)
        for index, parameter in enumerate(stack.parameters):
            tensors[f"{name}.{index}"] = parameter.detach()
            for key in ADAM_STATE:
                tensors[f"{name}.{index}.{key}"] = adams[name].state[parameter][key]
    write(tensors, file)


def load_checkpoint(
    file: Path, lr: float, device: torch.device
) -> tuple[dict[str, Stack], dict[str, torch.optim.Adam], Tensor, Progress]:
    tensors = load_file(file, device=str(device))
    stacks, adams = {}, {}
    for name in dict.fromkeys(key.split(".")[0] for key in tensors if key.endswith(".scale_L")):
        stack = stacks[name] = Stack(
            settings_of(name, device),
            *(torch.nn.Parameter(tensors[f"{name}.{index}"]) for index in range(4)),
            scale_L=tensors[f"{name}.scale_L"],
            steps_since_fired_LF=tensors[f"{name}.steps_since_fired_LF"],
            threshold_L=tensors[f"{name}.threshold_L"],
        )
        adam = adams[name] = optimiser(stack, lr)
        for index, parameter in enumerate(stack.parameters):
            adam.state[parameter] = {key: tensors[f"{name}.{index}.{key}"] for key in ADAM_STATE}
    numbers = {name: tensors[f"progress.{name}"].item() for name in vars(Progress())}
    seconds = numbers.pop("seconds")
    whole = {name: int(value) for name, value in numbers.items()}
    return stacks, adams, tensors["caps"], Progress(**whole, seconds=seconds)


def settings_of(release: str, device: torch.device) -> Settings:
    """Return the release's settings; bfloat16 products only where there are units for them."""
    return replace(RELEASES[release], half=device.type == "cuda")


def batch_of(acts: Tensor, index: Tensor, caps_L11: Tensor | float) -> Tensor:
    """Return activations `[L, B, D]` of the tokens `index`, the few massive ones shortened."""
    return cap_norms(acts[index].transpose(0, 1).float(), caps_L11)  # type: ignore[arg-type]


def export(
    stacks: dict[str, Stack], layers: Sequence[int], target: Path, progress: Progress
) -> None:
    """Write all SAEs in SAELens' format, and what they were trained with."""
    facts: dict[str, object] = {
        "training_tokens": progress.tokens,
        "training_steps": progress.steps,
    }
    for release, stack in stacks.items():
        for index, layer in enumerate(layers):
            save_sae(trainee(stack, index), layer, target / release / f"layer_{layer}", facts)
    (target / "training.json").write_text(json.dumps(asdict(progress), indent=1) + "\n")


def begin(acts: Tensor, lr: float) -> tuple[dict[str, Stack], dict[str, torch.optim.Adam], Tensor]:
    """Initialise both releases by activations `[N, L, D]`; return them with the longest norms."""
    every = torch.arange(len(acts), device=acts.device)
    caps_L11 = MAX_NORM * acts.float().norm(dim=-1).median(dim=0).values[:, None, None]
    stacks = {
        release: new_stack(settings_of(release, acts.device), batch_of(acts, every, caps_L11), seed)
        for seed, release in enumerate(RELEASES)
    }
    return stacks, {name: optimiser(stack, lr) for name, stack in stacks.items()}, caps_L11


def shown(stacks: dict[str, Stack]) -> str:
    """Format the last step's explained variance and number of dead latents of every SAE."""
    return " ".join(
        f"{explained:.3f}/{dead}"
        for stack in stacks.values()
        if stack.metrics  # none yet, if a resumed run's time was up at once
        for explained, dead in zip(
            stack.metrics["explained"].tolist(), stack.metrics["dead"].tolist(), strict=True
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="with tokens/ and nouns.txt")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--rows", type=int, default=2048, help="texts that are sampled at once")
    parser.add_argument("--written", type=float, default=0.6, help="share of written text")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    start = time.monotonic()
    device, layers, n_rows = torch.device(arguments.device), arguments.layers, arguments.rows
    scratch, target = arguments.scratch, arguments.target
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lm = load(arguments.model, device, dtype)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    nouns = (scratch / "nouns.txt").read_text().split()
    sampler = Sampler(lm, n_rows, CONTEXT)
    print(f"loaded in {time.monotonic() - start:.0f} s", flush=True)

    samples = scratch / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    if not any(int(file.stem) >= HELD_OUT_SAMPLES for file in samples.glob("*.npy")):
        held_out = written_rows(sampler, tokenizer, nouns, n_rows, HELD_OUT_SEED)
        np.save(samples / f"{HELD_OUT_SAMPLES:04d}.npy", held_out)
    documents = np.concatenate(list(Rows(scratch).rows.values()))
    n_documents = round(n_rows * (1 / arguments.written - 1))

    target.mkdir(parents=True, exist_ok=True)
    checkpoint, brought_back = target / "checkpoint.safetensors", target / "written.npy"
    stacks: dict[str, Stack] = {}
    adams: dict[str, torch.optim.Adam] = {}
    caps_L11, progress = torch.empty(0), Progress()
    if checkpoint.exists():
        stacks, adams, caps_L11, progress = load_checkpoint(checkpoint, arguments.lr, device)
    began = time.monotonic() - progress.seconds

    def share_done() -> float:
        progress.seconds = time.monotonic() - began
        return max(progress.steps / arguments.steps, progress.seconds / arguments.seconds)

    while share_done() < 1:
        times = [time.monotonic()]
        written = written_rows(sampler, tokenizer, nouns, n_rows, progress.rounds)
        times.append(time.monotonic())
        rows = take_rows(documents, progress.rounds * n_documents, n_documents)
        acts = encode(lm, np.concatenate([rows, written]), layers)
        draw = torch.Generator().manual_seed(progress.rounds)
        order = torch.randperm(len(acts), generator=draw).to(device)
        if not stacks:
            stacks, adams, caps_L11 = begin(acts[order[:FIRST_TOKENS]], arguments.lr)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic())
        for index in order.split(arguments.batch):
            if len(index) < arguments.batch or (done := share_done()) >= 1:
                break
            x_LBD = batch_of(acts, index, caps_L11)
            for release, stack in stacks.items():
                for group in adams[release].param_groups:
                    group["lr"] = arguments.lr * schedule(done)
                take_step(stack, adams[release], x_LBD)
            progress.steps += 1
            progress.tokens += len(index)
        del acts
        progress.rounds += 1
        metrics = shown(stacks)  # waits for the device
        times.append(time.monotonic())
        sampling, encoding, training = np.diff(times)
        print(
            f"round {progress.rounds}: {share_done():.0%}, {progress.tokens:,} tokens; "
            f"{len(written)} texts {sampling:.1f} s, encoding {encoding:.1f} s, "
            f"training {training:.1f} s; {metrics}",
            flush=True,
        )
        before = np.load(brought_back) if brought_back.exists() else written[:0]
        if len(before) < SHOWN_ROWS:
            np.save(brought_back, np.concatenate([before, written])[:SHOWN_ROWS])
        if progress.rounds % SAVE_ROUNDS == 0:
            save_checkpoint(checkpoint, stacks, adams, caps_L11, progress)
            export(stacks, layers, target, progress)
    if stacks:
        export(stacks, layers, target, progress)


if __name__ == "__main__":
    main()
