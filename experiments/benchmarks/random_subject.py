"""Subjects with random weights at real shapes, and a clock: what the benchmarks share."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

from steerlens.engine.subject import LoadedModel, Site, Subject
from steerlens.engine.subject.head import Head
from tests.support.tiny import save_tokenizer

GEMMA_2_2B = Gemma2Config()  # the defaults are its shapes


def random_model(config: Gemma2Config, device: str) -> LoadedModel:
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    with torch.device(device):
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
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
    return LoadedModel(bridge, AutoTokenizer.from_pretrained(folder), Head(bridge), "random")


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

    tokens = torch.randint(1, lm.head.d_vocab, (d_sae,))  # token 0 pads: its row is zero
    cosine = 0.6 * torch.rand(d_sae, 1, device=lm.device)
    toward = unit(lm.head.weight[tokens.to(lm.device)])
    away = unit(torch.randn_like(toward))
    sae.W_dec.data.copy_(unit(cosine * toward + (1 - cosine**2).sqrt() * away))
    sae.W_enc.data.copy_(sae.W_dec.data.T)
    return sae


def random_subject(lm: LoadedModel, sae: Any, layer: int) -> Subject:
    hook = f"blocks.{layer}.hook_resid_post"
    site = Site(hook, layer, read=hook, write=hook)
    return Subject(lm, sae, "random", site, prepend_bos=True, n_uncounted=1)


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Shapes(NamedTuple):
    """The weight matrices that one row goes through."""

    blocks: list[tuple[int, int]]
    unembed: tuple[int, int]

    def flops(self, with_unembed: int = 1) -> float:
        pairs = [*self.blocks, *[self.unembed] * with_unembed]
        return 2.0 * sum(rows * columns for rows, columns in pairs)


def shapes_above(config: Gemma2Config, layer: int) -> Shapes:
    """Those after the output of block `layer`; of the whole model for -1."""
    D, M = config.hidden_size, config.intermediate_size
    q, kv = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    block = [(D, q), (D, kv), (D, kv), (q, D), (D, M), (D, M), (M, D)]
    return Shapes(block * (config.num_hidden_layers - 1 - layer), (D, config.vocab_size))


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
