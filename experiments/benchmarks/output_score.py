"""Output score at Gemma-2-2B's shapes with random weights: our engine, the naive loop, the machine.

From the top of the repository (needs 16 GiB and some minutes on 2 cores):

    python -m experiments.benchmarks.output_score

For each layer and dtype it prints the rate of our path, of the authors' algorithm (one feature a
forward, without their moves between devices), and of plain matrix products of the shapes that our
path has to compute, all measured in this one process. FLOPs count the blocks above the hook, the
unembedding, and, where it is said, the logit lens.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from scipy.stats import spearmanr

from experiments.benchmarks.random_subject import (
    GEMMA_2_2B,
    matmul_rate,
    random_model,
    random_sae,
    random_subject,
    seconds,
    shapes_above,
)
from steerlens.engine.subject import LoadedModel
from steerlens.scores import RunContext
from steerlens.scores.output import Config, score
from tests.support.naive import naive_output_score

PROMPT = "From my experience,"


def measure(lm: LoadedModel, sae: Any, layer: int, n: int, loops: int) -> tuple[Any, float]:
    """Prints one row of the table; returns the scores and features per second."""
    subject = random_subject(lm, sae, layer)
    features, config, run = (
        torch.arange(n).numpy(),
        Config(prompt=PROMPT, null_directions=0),
        RunContext(),
    )
    hf_model: Any = lm.bridge.original_model
    shapes = shapes_above(hf_model.config, layer)
    lens = seconds(lambda: score(subject, features, config, run))  # logit lens and score
    result: list[Any] = []
    alone = seconds(lambda: result.append(score(subject, features, config, run)))  # lens is kept
    matmul = matmul_rate(shapes, 1024, sae.W_dec)
    naive = seconds(
        lambda: [naive_output_score(subject, i, PROMPT, config.factor) for i in range(loops)]
    )
    rate, whole = n * shapes.flops() / alone, n * shapes.flops(2) / lens
    print(
        f"{layer:>5}  {str(lm.dtype)[6:]:<9}{n / alone:>9.1f}{rate / 1e9:>9.1f}{matmul / 1e9:>9.1f}"
        f"{rate / matmul:>9.0%}{n / lens:>10.1f}{whole / matmul:>8.0%}"
        f"{loops / naive:>9.2f}{(n / lens) / (loops / naive):>8.1f}x",
        flush=True,
    )
    return result[0]["output_score"], n / lens


def main() -> None:
    parser = argparse.ArgumentParser(description="Output score at Gemma-2-2B's shapes.")
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 6])
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--loops", type=int, default=3, help="features of the naive loop")
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="too; minutes for a feature where the processor has no units for it",
    )
    args = parser.parse_args()
    lm = random_model(GEMMA_2_2B, args.device)
    sae = random_sae(lm, args.d_sae)
    print(f"threads {torch.get_num_threads()}, {args.features} features, device {args.device}")
    print("layer  dtype    score/s  GFLOP/s  matmul  of it  with lens  of it  naive/s  ours/naive")
    fp32 = {layer: measure(lm, sae, layer, args.features, args.loops) for layer in args.layers}
    if not args.bfloat16:
        return
    lm.bridge.original_model.to(torch.bfloat16)
    sae.to(torch.bfloat16)
    for layer in args.layers:
        scores, rate = measure(lm, sae, layer, args.features, args.loops)
        correlation = spearmanr(scores, fp32[layer][0]).statistic  # type: ignore[attr-defined]
        print(
            f"layer {layer}: bfloat16 is {rate / fp32[layer][1]:.2f}x float32; Spearman of its "
            f"scores with float32's {correlation:.5f}"
        )


if __name__ == "__main__":
    main()
