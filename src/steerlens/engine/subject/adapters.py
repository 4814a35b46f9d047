"""Adapters of TransformerLens' bridge for variants of model types that its own can't take over.

They only name a model's parts rightly; `agreement` then finds out whether the bridge computes the
same with them, and leaves attention to the model's own modules where it doesn't.
"""

from __future__ import annotations

from typing import Any

import torch
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.generalized_components import NormalizationBridge
from transformer_lens.model_bridge.supported_architectures import (
    CohereArchitectureAdapter,
    FalconArchitectureAdapter,
    PhiArchitectureAdapter,
)


def register_adapters() -> None:
    """Have the bridge use the adapters of this module."""
    for architecture, adapter in (
        ("CohereForCausalLM", CohereAdapter),
        ("FalconForCausalLM", FalconAdapter),
        ("PhiForCausalLM", PhiAdapter),
    ):
        ArchitectureAdapterFactory.register_adapter(architecture, adapter)


class CohereAdapter(CohereArchitectureAdapter):
    """Cohere, also with normed queries and keys (Command R+)."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        _declare_norms(self, "q_norm", "k_norm")


class PhiAdapter(PhiArchitectureAdapter):
    """Phi, also with normed queries and keys (qk_layernorm)."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        _declare_norms(self, "q_layernorm", "k_layernorm")


def _declare_norms(adapter: Any, q_name: str, k_name: str) -> None:
    """Name the norms of queries and keys, which not every model of the type has."""
    attention = adapter.component_mapping["blocks"].submodules["attn"]
    for ours, theirs in (("q_norm", q_name), ("k_norm", k_name)):
        attention.submodules[ours] = NormalizationBridge(
            name=theirs, config=adapter.cfg, optional=True
        )


class FalconAdapter(FalconArchitectureAdapter):
    """Falcon, also of the new decoder architecture (40B, 180B), which shares keys in groups."""

    def __init__(self, cfg: Any) -> None:
        if getattr(cfg, "new_decoder_architecture", False):
            cfg.multi_query = False  # Falcon 40B says true, and Transformers doesn't look at it
        super().__init__(cfg)

    def _split_falcon_qkv(
        self, original_attention_component: Any
    ) -> tuple[torch.nn.Linear, torch.nn.Linear, torch.nn.Linear]:
        if not self._is_new_arch:
            return super()._split_falcon_qkv(original_attention_component)
        # Group by group: its queries, its key, its value.
        qkv, n_heads = original_attention_component.query_key_value, int(self.cfg.n_heads)
        n_groups = int(self.cfg.n_key_value_heads or n_heads)
        shape = (n_groups, n_heads // n_groups + 2, int(self.cfg.d_model) // n_heads)
        weight = qkv.weight.detach().unflatten(0, shape)
        bias = None if qkv.bias is None else qkv.bias.detach().unflatten(0, shape)
        query, key, value = slice(None, -2), slice(-2, -1), slice(-1, None)
        return (
            _linear(weight[:, query], None if bias is None else bias[:, query]),
            _linear(weight[:, key], None if bias is None else bias[:, key]),
            _linear(weight[:, value], None if bias is None else bias[:, value]),
        )


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    """Return a linear layer whose outputs are all but the last dimension of `weight`."""
    flat = weight.flatten(0, -2).clone()
    linear = torch.nn.Linear(flat.shape[1], flat.shape[0], bias is not None, device="meta")
    linear.weight = torch.nn.Parameter(flat)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.flatten().clone())
    return linear
