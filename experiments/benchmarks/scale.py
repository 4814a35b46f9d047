"""Time and memory of scoring as the number of features and the vocabulary grow.

    python -m experiments.benchmarks.scale

One block with random weights at Gemma-2-9B's width, so that the dictionary and the vocabulary are
what counts. For each size it prints what scoring costs, what twice and four times as many features
cost in proportion (2 and 4, if time is linear), and how far the process grew beyond the weights,
each size in a process of its own: the growth must stay within `memory_budget`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma2Config

from experiments.benchmarks.random_subject import random_model, random_sae, random_subject, seconds
from steerlens.engine.activations.stream import activations
from steerlens.scores import RunContext
from steerlens.scores.output import Config, score

SIZES = ((1_024, 8_192), (16_384, 8_192), (16_384, 65_536), (131_072, 65_536), (131_072, 256_000))


def status(field: str) -> int:
    """Bytes of memory of this process (Linux): VmRSS now, VmHWM at most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> int:
    """Begins a new peak; returns what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def one(d_sae: int, d_vocab: int, d_model: int, n: int, budget: int) -> None:
    config = Gemma2Config(
        num_hidden_layers=2,
        vocab_size=d_vocab,
        hidden_size=d_model,
        intermediate_size=4 * d_model,
    )
    lm = random_model(config, "cpu")
    subject = random_subject(lm, random_sae(lm, d_sae), 0)
    n = min(n, d_sae // 4)
    settings = Config(null_directions=0)
    score(subject, np.arange(8), settings, RunContext(budget))
    before = forget_peak()
    took: list[float] = []
    for features in (np.arange(n), np.arange(2 * n), np.arange(4 * n)):
        subject.logit_lens_memo = None
        took.append(seconds(lambda: score(subject, features, settings, RunContext(budget))))  # noqa: B023
    output = status("VmHWM") - before
    draw = np.random.default_rng(0)
    pieces = [draw.integers(0, 200, 64).astype(np.int32) for _ in range(64)]
    before = forget_peak()
    reading = seconds(lambda: activations([subject], pieces, 100, budget))
    print(
        f"{d_sae:>8,}{d_vocab:>9,}{n:>10,}{took[0]:>9.1f}{took[1] / took[0]:>8.2f}x"
        f"{took[2] / took[0]:>7.2f}x{output / 2**30:>12.2f}{64 * 63 / reading:>14,.0f}"
        f"{(status('VmHWM') - before) / 2**30:>12.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory as sizes grow.")
    parser.add_argument(
        "--features",
        type=int,
        default=1024,
        help="the slice that is scored, once, twice and four times",
    )
    parser.add_argument("--d-model", type=int, default=3584)
    parser.add_argument("--budget", type=float, default=2.0, help="memory_budget in GiB")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        d_sae, d_vocab = args.one
        one(d_sae, d_vocab, args.d_model, args.features, int(args.budget * 2**30))
        return
    print(f"threads {torch.get_num_threads()}, memory_budget {args.budget:g} GiB, float32")
    print(
        "   d_sae  d_vocab  features  seconds 2x many 4x many  output GiB  corpus tok/s corpus GiB",
        flush=True,
    )
    own: list[str] = [sys.executable, "-m", "experiments.benchmarks.scale"]
    for size in SIZES:
        settings = ["--d-model", args.d_model, "--features", args.features, "--budget", args.budget]
        subprocess.run([*own, *map(str, settings), "--one", *map(str, size)], check=True)


if __name__ == "__main__":
    main()
