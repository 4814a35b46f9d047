"""Write the activations that the SAEs are trained on, in shards.

    python -m experiments.smollm2.activations --model DIR --scratch DIR --shards 64

Each shard is `[N, n_layers, d_model]` in bfloat16 (`activations/NNNN.safetensors`): rows of
`CONTEXT` tokens, up to a fifth of them written by the model itself, the rest from the documents in
proportion to their size, without position 0, whose norm is a hundred times that of all others, and
without padding; shuffled. The last thirtieth of every source and the batches of samples from
`HELD_OUT_SAMPLES` on are held out; they go into `held_out/KIND.safetensors` with their token ids.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

LAYERS = (4, 9, 14, 19, 24, 28)
CONTEXT = 256
ROWS = 128
"""Rows of a shard: 32,640 tokens."""
BATCH = 16
BOS_ID = 1
PREPEND_BOS = True
HELD_OUT_SAMPLES = 3
SAMPLED_SHARE = 0.1875
FIRST_SAMPLED = 7
"""The first shard with rows of samples; those before were written while the first samples were."""


class HalfLinear(nn.Module):
    """A linear layer whose product is in bfloat16 while its input and output stay float32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight.detach().bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x.bfloat16(), self.weight).float()


def load_blocks(model: Path, *, half: bool = True) -> nn.Module:
    """Load the model up to its last SAE's block; the residual stream stays in float32."""
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    base = lm.model
    base.layers = base.layers[: max(LAYERS) + 1]
    if half:
        for block in base.layers:
            for parent in (block.self_attn, block.mlp):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(parent, name, HalfLinear(child))
    return base


@torch.no_grad()
def residuals(base: nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return `resid_post` of `LAYERS` as `[B, L, n_layers, D]` for token ids `[B, L]`."""
    read: list[torch.Tensor] = []
    handles = [
        base.layers[layer].register_forward_hook(  # type: ignore[union-attr, operator]
            lambda _module, _args, out: read.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in LAYERS
    ]
    try:
        base(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(read, dim=2)


class Rows:
    """Token rows of all sources, drawn without replacement; `[CONTEXT]` each, beginning with
    BOS."""

    def __init__(self, scratch: Path, *, held_out: bool = False) -> None:
        self.scratch = scratch
        self.rows: dict[str, np.ndarray] = {}
        width = CONTEXT - PREPEND_BOS
        for file in sorted((scratch / "tokens").glob("*.npy")):
            if file.stem.endswith(".starts"):
                continue
            tokens = np.load(file)
            n = len(tokens) // width
            rows = tokens[: n * width].reshape(n, width)
            n_train = n - n // 30
            rows = rows[n_train:] if held_out else rows[:n_train]
            if PREPEND_BOS:
                rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=BOS_ID)
            self.rows[file.stem] = rows
        self.sampled = self._samples(held_out)

    def _samples(self, held_out: bool) -> np.ndarray:
        """Rows that the model wrote: left padding moved away, cut to `CONTEXT`."""
        rows = []
        for file in sorted((self.scratch / "samples").glob("*.npy")):
            if file.stem.endswith("partial") or (int(file.stem) >= HELD_OUT_SAMPLES) != held_out:
                continue
            for row in np.load(file):
                text = row[np.argmax(row != 0) :]
                text = text if text[0] == BOS_ID else np.concatenate([[BOS_ID], text])
                if len(text) >= CONTEXT:
                    rows.append(text[:CONTEXT].astype(np.uint16))
        return np.stack(rows) if rows else np.zeros((0, CONTEXT), np.uint16)

    def shard(self, number: int) -> np.ndarray:
        """Return the rows of shard `number`, which don't depend on other shards but for the
        samples."""
        rng = np.random.default_rng(0)
        documents = np.concatenate(
            [rows[rng.permutation(len(rows))] for rows in self.rows.values()]
        )
        documents = documents[rng.permutation(len(documents))]
        n_sampled = int(ROWS * SAMPLED_SHARE)
        first_sampled = max(0, number - FIRST_SAMPLED) * n_sampled
        sampled = self.sampled[first_sampled:][: n_sampled if number >= FIRST_SAMPLED else 0]
        n_documents = ROWS - len(sampled)
        first = number * ROWS
        rows = documents[first : first + n_documents]
        return np.concatenate([rows, sampled])


def encode(base: nn.Module, rows: np.ndarray) -> torch.Tensor:
    """Return activations `[N, n_layers, D]` of all tokens of the rows but position 0, in
    bfloat16."""
    parts = []
    for start in range(0, len(rows), BATCH):
        ids = torch.from_numpy(rows[start : start + BATCH].astype(np.int64))
        parts.append(residuals(base, ids)[:, 1:].flatten(0, 1).bfloat16())
    return torch.cat(parts)


def write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load_blocks(arguments.model)
    for number in range(arguments.first, arguments.first + arguments.shards):
        file = arguments.scratch / "activations" / f"{number:04d}.safetensors"
        if file.exists():
            continue
        start = time.monotonic()
        rows = Rows(arguments.scratch).shard(number)
        if not len(rows):
            break
        acts = encode(base, rows)
        order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(number))
        write({"acts": acts[order], "ids": torch.from_numpy(rows.astype(np.int32))}, file)
        rate = len(acts) / (time.monotonic() - start)
        print(f"{file.name}: {len(acts)} tokens, {rate:.0f} a second", flush=True)


if __name__ == "__main__":
    main()
