"""Input score: the streaming pass against the plain forward and encoder, and one text at a time.

    python -m experiments.benchmarks.input_score          # a few of Gemma-2-2B's blocks, random
    python -m experiments.benchmarks.input_score --default --layer 19       # the default

Three rates in one process, in tokens a second: the plain forward of the model up to the SAE's hook
and its encoder on full batches of equal length, nothing kept; our pass over the same tokens; and
the naive loop, one text at a time, keeping all activations.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from transformers import Gemma2Config

from experiments.benchmarks.random_subject import (
    random_model,
    random_sae,
    random_subject,
    seconds,
)
from steerlens import load_subject
from steerlens.engine.activations.stream import TOKENS_ON_CPU, TOKENS_ON_GPU, activations, residuals
from steerlens.engine.subject import Subject

BUDGET = 2 * 1024**3


def a_few_blocks(layer: int, d_sae: int, device: str, dtype: torch.dtype) -> Subject:
    config = Gemma2Config(num_hidden_layers=layer + 2, vocab_size=32_000)
    lm = random_model(config, device)
    sae = random_sae(lm, d_sae)
    lm.bridge.original_model.to(dtype)
    sae.to(dtype)
    subject = random_subject(lm, sae, layer)
    vectors, _ = residuals([subject], pieces_of(subject, 200, (16, 127)))
    # About 100 features fire on a token, as with Gemma Scope's SAEs.
    hundredth = sae.encode(vectors[0])[0, 1:].topk(100).values[:, -1]
    sae.threshold.data.fill_(float(hundredth.mean()))
    return subject


def pieces_of(subject: Subject, n_tokens: int, lengths: tuple[int, int]) -> list[np.ndarray]:
    """Random tokens in pieces whose lengths are uniform in `lengths`."""
    draw = np.random.default_rng(0)
    bos = 0 if subject.bos is None else subject.bos
    pieces = []
    while n_tokens > 0:
        size = int(draw.integers(*lengths, endpoint=True))
        tokens = draw.integers(3, min(200, subject.lm.head.d_vocab), size)
        pieces.append(np.concatenate([[bos], tokens]).astype(np.int32))
        n_tokens -= size
    return pieces


@torch.no_grad()
def plain(subject: Subject, pieces: list[np.ndarray], at_once: int) -> None:
    """The same number of tokens in batches without padding; activations are thrown away."""
    flat = np.concatenate(pieces)
    length = 128
    rows = flat[: len(flat) // length * length].reshape(-1, length)
    for batch in np.array_split(rows, max(1, rows.size // at_once)):
        vectors, _ = residuals([subject], list(batch))
        subject.sae.encode(vectors[0])


@torch.no_grad()
def naive(subject: Subject, pieces: list[np.ndarray]) -> None:
    """One text at a time through the whole model, all activations kept, then the maxima."""
    kept = []
    for piece in pieces:
        tokens = torch.from_numpy(piece)[None].long().to(subject.lm.device)
        _, cache = subject.lm.bridge.run_with_cache(tokens)
        kept.append(subject.sae.encode(cache[subject.site.read])[0, 1:])
    torch.stack([acts.max(dim=0).values for acts in kept]).topk(min(100, len(kept)), dim=0)


def measure(name: str, subject: Subject, n_tokens: int, loops: int) -> None:
    pieces = pieces_of(subject, n_tokens, (16, 127))
    read = sum(map(len, pieces)) - len(pieces)
    at_once = TOKENS_ON_CPU if subject.lm.device.type == "cpu" else TOKENS_ON_GPU
    plain(subject, pieces[:20], at_once)
    base = seconds(lambda: plain(subject, pieces, at_once))
    found: list[Any] = []
    ours = seconds(lambda: found.append(activations([subject], pieces, 100, BUDGET)))
    loop = seconds(lambda: naive(subject, pieces[:loops]))
    looped = sum(map(len, pieces[:loops])) - loops
    print(
        f"{name:<28}{read / base:>12,.0f}{read / ours:>12,.0f}{ours / base:>10.2f}x"
        f"{looped / loop:>12,.0f}{(read / ours) / (looped / loop):>9.1f}x",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Input score against the plain forward.")
    parser.add_argument("--default", action="store_true", help="the default model instead")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--loops", type=int, default=20, help="texts of the naive loop")
    parser.add_argument("--d-sae", type=int, nargs="+", default=[16_384, 65_536])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    print(f"threads {torch.get_num_threads()}, {args.tokens:,} tokens, tokens/s")
    print(f"{'subject':<28}{'plain':>12}{'ours':>12}{'time':>11}{'naive':>12}{'ours/it':>10}")
    if args.default:
        for sae in ("smollm2-topk", "smollm2-batchtopk"):
            subject = load_subject(sae=sae, layer=args.layer)
            measure(sae, subject, args.tokens, args.loops)
        return
    for d_sae in args.d_sae:
        subject = a_few_blocks(args.layer, d_sae, args.device, getattr(torch, args.dtype))
        measure(f"layer {args.layer}, d_sae {d_sae:,}", subject, args.tokens, args.loops)


if __name__ == "__main__":
    main()
