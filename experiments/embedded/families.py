"""The architectures that can be trained here, and what differs between them."""

from __future__ import annotations

from typing import Any

from settings import Settings
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D


def build_config(settings: Settings) -> PreTrainedConfig:
    """The configuration of `settings.model.family`; all have as many parameters in a block."""
    shape = settings.model
    # Names that every family understands, GPT-2's by its attribute map.
    common: dict[str, Any] = {
        "vocab_size": settings.tokenizer.vocabulary,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if shape.family == "llama":
        return LlamaConfig(
            **common, num_key_value_heads=shape.n_heads, intermediate_size=shape.d_mlp
        )
    if shape.family == "gpt_neox":
        return GPTNeoXConfig(**common, intermediate_size=shape.d_mlp)
    if shape.family == "gpt2":
        # No dropout: none of the others has any.
        dropout: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return GPT2Config(**common, **dropout, n_inner=shape.d_mlp)
    if shape.family == "gemma2":
        # Soft caps are for logits far larger than those of a small model, and slow on the CPU.
        return Gemma2Config(
            **common,
            num_key_value_heads=shape.n_heads,
            head_dim=shape.d_model // shape.n_heads,
            query_pre_attn_scalar=shape.d_model // shape.n_heads,
            intermediate_size=shape.d_mlp,
            sliding_window=shape.context,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        )
    raise ValueError(f"no architecture {shape.family!r}")


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks: `layers` or `h`."""
    return next(child for child in model.base_model.children() if isinstance(child, nn.ModuleList))


def unembedding(model: PreTrainedModel) -> Tensor:
    """Weight of the unembedding, (V, D); none of these families has a bias or a soft cap here."""
    head: Any = model.get_output_embeddings()
    return head.weight


def block_matrices(model: PreTrainedModel) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices inside the blocks: those stored (out, in), and those stored (in, out) by Conv1D."""
    modules = [m for m in blocks(model).modules() if isinstance(m, (nn.Linear, Conv1D))]
    return (
        [m.weight for m in modules if isinstance(m, nn.Linear)],
        [m.weight for m in modules if isinstance(m, Conv1D)],
    )
