"""Steered texts at Gemma-2-2B's shapes with random weights: ours, the authors' way, the machine.

From the top of the repository (needs 16 GiB and some minutes on 2 cores):

    python -m experiments.benchmarks.generation

In this one process: 256 rows, each with its own feature and factor, 12 new tokens each; the same
engine without steering; one text at a time with `generate` and a hook that decodes all feature
activations, as the authors do (without their moves between devices); and plain matrix products of
the shapes that every new token has to go through.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from experiments.benchmarks.random_subject import (
    GEMMA_2_2B,
    matmul_rate,
    random_model,
    random_sae,
    random_subject,
    seconds,
    shapes_above,
)
from steerlens.engine.generation.decoding import decode
from steerlens.engine.generation.sampling import Sampling
from steerlens.engine.generation.stopping import Stopping
from steerlens.engine.intervention import Operation, feature_targets
from steerlens.engine.intervention.hooks import SteeringHooks
from steerlens.engine.subject import Subject

PROMPT = "From my experience,"


def ours(subject: Subject, n_rows: int, n_tokens: int, steered: bool) -> list[Any]:
    features_B1 = torch.arange(n_rows)[:, None] * 7 % subject.d_sae
    factor_B = 0.5 + torch.arange(n_rows) / n_rows * 10 if steered else torch.zeros(n_rows)
    targets = feature_targets(subject.sae, features_B1, factor_B)
    hooks = SteeringHooks(subject, Operation(), targets)
    stopping = Stopping(subject.lm.tokenizer, [], [], n_tokens)
    prompts, prompt_B = [subject.to_tokens(PROMPT)[0].tolist()], torch.zeros(n_rows).long()
    seeds = range(n_rows)
    return decode(subject, prompts, prompt_B, hooks, seeds, Sampling(0.7), stopping)


def one_at_a_time(subject: Subject, n_texts: int, n_tokens: int) -> None:
    """The authors' algorithm: encode, raise one feature, decode everything, keep the error."""
    sae, tokens = subject.sae, subject.to_tokens(PROMPT)

    def edit(out: torch.Tensor, hook: Any, feature: int) -> torch.Tensor:
        feature_acts = sae.encode(out)
        error = out - sae.decode(feature_acts)
        feature_acts[:, -1, feature] += 2.0 * feature_acts[:, -1].max()
        return sae.decode(feature_acts) + error

    model: Any = subject.lm.bridge.original_model
    for feature in range(n_texts):
        hook = (subject.site.write, lambda out, hook, feature=feature: edit(out, hook, feature))
        with subject.lm.bridge.hooks(fwd_hooks=[hook]):
            model.generate(
                tokens, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=True,
                temperature=0.7, top_k=0,
            )  # fmt: skip


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Steered texts at Gemma-2-2B's shapes.")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--layer", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="the best counts")
    parser.add_argument("--loops", type=int, default=2, help="texts one at a time")
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    lm = random_model(GEMMA_2_2B, args.device)
    sae = random_sae(lm, args.d_sae)
    dtype = getattr(torch, args.dtype)
    lm.bridge.original_model.to(dtype)
    sae.to(dtype)
    subject = random_subject(lm, sae, args.layer)
    n = args.rows * args.tokens
    ours(subject, args.rows, 2, True)  # what happens once

    # In turns, because the machine's own rate changes from minute to minute.
    turns = [
        [seconds(lambda s=s: ours(subject, args.rows, args.tokens, s)) for s in (True, False)]
        for _ in range(args.rounds)
    ]
    steered, unsteered = map(min, zip(*turns, strict=True))
    shapes = shapes_above(GEMMA_2_2B, -1)
    matmul = matmul_rate(shapes, args.rows, sae.W_dec)
    alone = seconds(lambda: one_at_a_time(subject, args.loops, args.tokens))
    rate = n * shapes.flops() / steered
    loop = args.loops * args.tokens / alone
    print(f"{args.rows} rows, {args.tokens} tokens, {args.dtype}, device {args.device}")
    print(f"steered         {n / steered:10.1f} tokens/s")
    print(f"unsteered       {n / unsteered:10.1f} tokens/s; steered is {unsteered / steered:.2f}x")
    print(f"one at a time   {loop:10.2f} tokens/s; ours is {n / steered / loop:.1f}x")
    print(
        f"matrix products {matmul / shapes.flops():10.1f} tokens/s ({matmul / 1e9:.0f} GFLOP/s); "
        f"ours is {rate / matmul:.0%} of it"
    )


if __name__ == "__main__":
    main()
