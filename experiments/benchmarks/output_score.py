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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

from steerlens.scores import ScoreRun
from steerlens.scores.output import Config, score
from steerlens.subject import LoadedModel, Subject
from steerlens.subject.head import checked_head
from tests.support.naive import naive_output_score
from tests.support.tiny import save_tokenizer

GEMMA_2_2B = Gemma2Config()  # the defaults are its shapes
PROMPT = "From my experience,"


class Shapes(NamedTuple):
    """Multiply-adds of one row through each weight matrix above the hook."""

    blocks: list[tuple[int, int]]
    unembed: tuple[int, int]

    def flops(self, with_unembed: int = 1) -> float:
        pairs = [*self.blocks, *[self.unembed] * with_unembed]
        return 2.0 * sum(rows * columns for rows, columns in pairs)


def shapes_above(config: Gemma2Config, layer: int) -> Shapes:
    D, M = config.hidden_size, config.intermediate_size
    q, kv = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    block = [(D, q), (D, kv), (D, kv), (q, D), (D, M), (D, M), (M, D)]
    return Shapes(block * (config.num_hidden_layers - 1 - layer), (D, config.vocab_size))


def random_model(config: Gemma2Config, device: str) -> LoadedModel:
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(device)
    # Logits that spread like a trained model's (deviation 3) instead of nearly equal ones.
    embedding = hf_model.get_input_embeddings().weight.data
    embedding *= 3 / config.hidden_size**0.5 / embedding[:1000].std()
    folder = Path(tempfile.mkdtemp())
    save_tokenizer(folder)
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=hf_model.eval(), device=device
    )
    for parameter in hf_model.parameters():
        parameter.requires_grad_(False)
    return LoadedModel(
        bridge, AutoTokenizer.from_pretrained(folder), checked_head(bridge), "random"
    )


def random_sae(lm: LoadedModel, d_sae: int) -> Any:
    """A JumpReLU SAE with unit decoder rows.

    Each row points toward one token's unembedding, with a cosine between 0 and 0.6: the output
    scores then spread over orders of magnitude, as those of trained SAEs do.
    """
    from sae_lens import SAE

    sae = SAE.from_dict(
        {
            "architecture": "jumprelu",
            "d_in": lm.d_model,
            "d_sae": d_sae,
            "device": str(lm.device),
            "apply_b_dec_to_input": False,
            "metadata": {"prepend_bos": True},
        }
    ).requires_grad_(False)

    def unit(rows: torch.Tensor) -> torch.Tensor:
        return rows / rows.norm(dim=-1, keepdim=True)

    tokens = torch.randint(lm.head.d_vocab, (d_sae,))
    cosine = 0.6 * torch.rand(d_sae, 1, device=lm.device)
    toward = unit(lm.head.weight[tokens.to(lm.device)])
    away = unit(torch.randn_like(toward))
    sae.W_dec.data.copy_(unit(cosine * toward + (1 - cosine**2).sqrt() * away))
    sae.W_enc.data.copy_(sae.W_dec.data.T)
    return sae


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(shapes: Shapes, rows: int, like: torch.Tensor) -> float:
    """FLOP/s of plain products (rows, D) x (D, M) with exactly the weights' shapes."""
    total = 0.0
    for shape in set(shapes.blocks) | {shapes.unembed}:
        x, weight = like.new_empty(rows, shape[0]).normal_(), like.new_empty(shape[1], shape[0])
        weight.normal_(std=0.02)
        out = torch.nn.functional.linear(x, weight)
        best = min(seconds(lambda: torch.mm(x, weight.T, out=out)) for _ in range(2))  # noqa: B023
        total += best * ([*shapes.blocks, shapes.unembed].count(shape))
    return rows * shapes.flops() / total


def measure(lm: LoadedModel, sae: Any, layer: int, n: int, loops: int) -> tuple[Any, float]:
    """Prints one row of the table; returns the scores and features per second."""
    subject = Subject(lm, sae, "random", layer, f"blocks.{layer}.hook_resid_post", True)
    features, config, run = torch.arange(n).numpy(), Config(prompt=PROMPT), ScoreRun()
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
    args = parser.parse_args()
    lm = random_model(GEMMA_2_2B, args.device)
    sae = random_sae(lm, args.d_sae)
    print(f"threads {torch.get_num_threads()}, {args.features} features, device {args.device}")
    print("layer  dtype    score/s  GFLOP/s  matmul  of it  with lens  of it  naive/s  ours/naive")
    fp32 = {layer: measure(lm, sae, layer, args.features, args.loops) for layer in args.layers}
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
