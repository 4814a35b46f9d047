"""Run a Llama model without Transformers' code: residuals of rows, and texts from CUDA graphs.

Transformers spends most of a decoding step of a small model in Python. Here a step is one replay
of a graph: every row begins at position 0, prompts are read token by token, and nothing is asked
of the device between two steps. A test compares both with Transformers.

Letters: B rows, T tokens, D d_model, H heads, K key-value heads, G = H / K, C head size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu
from transformers import AutoModelForCausalLM

END_ID = 0
"""`<|endoftext|>`; a row that ends is filled with it."""
MIN_P = 0.05
SPAN = 64
"""A step attends to a multiple of so many cached positions; one graph each."""


class Block(NamedTuple):
    """Weights of one block; products' are in the type they are computed in, norms' in float32."""

    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass
class Llama:
    """A Llama model with tied or untied unembedding, no biases, and plain rotary positions."""

    embedding: Tensor
    blocks: list[Block]
    norm: Tensor
    unembedding: Tensor
    inverse_frequency: Tensor
    n_heads: int
    n_key_heads: int
    eps: float

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.dtype


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Llama:
    """Read a folder in the Hugging Face layout; products are computed in `dtype`."""
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, weights = hf_model.config, hf_model.state_dict()

    def product(*names: str) -> Tensor:
        return torch.cat([weights[f"{name}.weight"] for name in names]).to(device, dtype)

    def norm(name: str) -> Tensor:
        return weights[f"{name}.weight"].to(device)

    blocks = []
    for number in range(config.num_hidden_layers):
        block = f"model.layers.{number}"
        attention = f"{block}.self_attn"
        blocks.append(
            Block(
                norm(f"{block}.input_layernorm"),
                product(*(f"{attention}.{name}_proj" for name in "qkv")),
                product(f"{attention}.o_proj"),
                norm(f"{block}.post_attention_layernorm"),
                product(f"{block}.mlp.gate_proj", f"{block}.mlp.up_proj"),
                product(f"{block}.mlp.down_proj"),
            )
        )
    return Llama(
        embedding=weights["model.embed_tokens.weight"].to(device),
        blocks=blocks,
        norm=norm("model.norm"),
        unembedding=product("lm_head"),
        inverse_frequency=hf_model.model.rotary_emb.inv_freq.float().to(device),
        n_heads=config.num_attention_heads,
        n_key_heads=config.num_key_value_heads,
        eps=config.rms_norm_eps,
    )


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, weight.shape, weight, eps)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x @ weight.T` in float32, computed in the weight's type."""
    return linear(x.to(weight.dtype), weight).float()


def _heads(lm: Llama, block: Block, x_BTD: Tensor, position_T: Tensor) -> tuple[Tensor, ...]:
    """Return rotated queries `[B, H, T, C]`, rotated keys and values `[B, K, T, C]`, in float32."""
    H, K = lm.n_heads, lm.n_key_heads
    B, T, _ = x_BTD.shape
    qkv = _product(_normed(x_BTD, block.attention_norm, lm.eps), block.qkv)
    heads = qkv.view(B, T, H + 2 * K, -1).transpose(1, 2)
    angle_TC = (position_T[:, None] * lm.inverse_frequency).repeat(1, 2)
    first, second = heads[:, : H + K].chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    rotated = heads[:, : H + K] * angle_TC.cos() + turned * angle_TC.sin()
    return rotated[:, :H], rotated[:, H:], heads[:, H + K :]


def _mlp(lm: Llama, block: Block, x: Tensor) -> Tensor:
    gate, up = _product(_normed(x, block.mlp_norm, lm.eps), block.gate_up).chunk(2, dim=-1)
    return _product(silu(gate) * up, block.down)


@torch.no_grad()
def residuals(lm: Llama, ids_BT: Tensor, layers: Sequence[int]) -> Tensor:
    """Return `resid_post` of `layers` as `[B, T, n_layers, D]` in float32, of rows without padding.

    The residual stream, attention and norms are in float32, as in the CPU's path.
    """
    B, T = ids_BT.shape
    group = lm.n_heads // lm.n_key_heads
    position_T = torch.arange(T, device=lm.device)
    x_BTD = embedding(ids_BT, lm.embedding)
    read: list[Tensor] = []
    for number, block in enumerate(lm.blocks[: max(layers) + 1]):
        q, k, v = _heads(lm, block, x_BTD, position_T)
        k, v = (y.repeat_interleave(group, dim=1) for y in (k, v))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + _product(mixed.transpose(1, 2).reshape(B, T, -1), block.out)
        x_BTD = x_BTD + _mlp(lm, block, x_BTD)
        if number in layers:
            read.append(x_BTD)
    return torch.stack(read, dim=2)


def sample(logits_BV: Tensor) -> Tensor:
    """Draw a token `[B]` of each row at temperature 1 with min-p `MIN_P`."""
    probability = logits_BV.softmax(dim=-1)
    least = MIN_P * probability.amax(dim=-1, keepdim=True)
    probability = probability * (probability >= least)
    return (probability / torch.empty_like(probability).exponential_()).argmax(dim=-1)


class Sampler:
    """Continues `n_rows` prompts at once to `n_tokens` tokens; on CUDA by replaying graphs."""

    def __init__(self, lm: Llama, n_rows: int, n_tokens: int) -> None:
        self.lm = lm
        self._spans = [min(end, n_tokens) for end in range(SPAN, n_tokens + SPAN, SPAN)]
        size = lm.blocks[0].out.shape[1] // lm.n_heads
        shape = (len(lm.blocks), n_rows, lm.n_key_heads, n_tokens, size)
        self._keys, self._values = (
            torch.zeros(shape, dtype=lm.dtype, device=lm.device) for _ in range(2)
        )
        self._tokens = torch.zeros(n_rows, n_tokens, dtype=torch.long, device=lm.device)
        self._prompt_length = torch.ones(n_rows, dtype=torch.long, device=lm.device)
        self._position = torch.zeros(1, dtype=torch.long, device=lm.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if lm.device.type == "cuda":
            for span in self._spans:
                self._capture(span)

    @torch.no_grad()
    def write(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return token rows `[n_rows, n_tokens]`, each beginning with its prompt.

        Prompts without `END_ID`, one of each row, none empty or longer than `n_tokens`. A row that
        ends goes on with `END_ID`.
        """
        tokens = torch.zeros(self._tokens.shape, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        self._tokens.copy_(tokens)
        self._prompt_length.copy_(torch.tensor([len(prompt) for prompt in prompts]))
        self._position.zero_()
        for position in range(self._tokens.shape[1] - 1):
            span = self._spans[position // SPAN]
            if self._graphs:
                self._graphs[span].replay()
            else:
                self._advance(span)
        return self._tokens.clone()

    def _capture(self, span: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            self._position.zero_()
            self._advance(span)  # libraries set themselves up
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.no_grad(), torch.cuda.graph(graph, pool=pool):
            self._advance(span)
        self._graphs[span] = graph

    def _advance(self, span: int) -> None:
        """Read the tokens at the position, write the next ones that no prompt has, and move on."""
        position = self._position
        current_B = self._tokens.index_select(1, position).squeeze(1)
        sampled_B = sample(self._logits(current_B, span))
        sampled_B = sampled_B.masked_fill(current_B == END_ID, END_ID)
        given_B = self._tokens.index_select(1, position + 1).squeeze(1)
        next_B = torch.where(position + 1 < self._prompt_length, given_B, sampled_B)
        self._tokens.index_copy_(1, position + 1, next_B[:, None])
        position += 1

    def _logits(self, token_B: Tensor, span: int) -> Tensor:
        """Return logits `[B, V]` after one more token, of which at most `span` are then cached."""
        lm, position = self.lm, self._position
        B, K = len(token_B), lm.n_key_heads
        hidden = torch.arange(span, device=lm.device) > position
        x_B1D = embedding(token_B, lm.embedding)[:, None]
        for block, keys, values in zip(lm.blocks, self._keys, self._values, strict=True):
            q, k, v = _heads(lm, block, x_B1D, position)
            keys.index_copy_(2, position, k.to(lm.dtype))
            values.index_copy_(2, position, v.to(lm.dtype))
            q_BKGC = q.reshape(B, K, lm.n_heads // K, -1) * q.shape[-1] ** -0.5
            score = (q_BKGC.to(lm.dtype) @ keys[:, :, :span].transpose(2, 3)).float()
            weight = score.masked_fill(hidden, -torch.inf).softmax(dim=-1)
            mixed = weight.to(lm.dtype) @ values[:, :, :span]
            x_B1D = x_B1D + _product(mixed.reshape(B, 1, -1), block.out)
            x_B1D = x_B1D + _mlp(lm, block, x_B1D)
        return _product(_normed(x_B1D[:, 0], lm.norm, lm.eps), lm.unembedding)
