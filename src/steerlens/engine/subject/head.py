"""The model's last stage, from the last block's output to logits, callable on rows of vectors.

Scores need it apart from the model: the logit lens applies it to decoder rows, and the output
score must never hold rows x vocabulary logits at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Head:
    """Final norm, unembedding, and what some models do to logits after it."""

    def __init__(self, bridge: TransformerBridge) -> None:
        hf_model: Any = bridge.original_model
        hf_config = hf_model.config.get_text_config()
        self._norm = bridge.ln_final
        unembed = bridge.unembed.original_component
        self.weight: torch.Tensor = unembed.weight
        """Unembedding matrix as stored, shape (V, D)."""
        # The bridge gives every unembedding a bias; zeros would only cost time.
        has_bias = unembed.bias is not None and bool(unembed.bias.any())
        self.bias: torch.Tensor | None = unembed.bias if has_bias else None
        """Unembedding bias, shape (V,)."""
        self.softcap: float | None = getattr(hf_config, "final_logit_softcapping", None)
        """Logits become softcap * tanh(logits / softcap) (Gemma)."""
        divisor = getattr(hf_config, "logits_scaling", None)
        factor = getattr(hf_config, "logit_scale", None) or 1.0
        self.scale = float(factor) if divisor is None else 1.0 / float(divisor)
        """Logits are multiplied by this (Cohere, Granite)."""

    @property
    def d_vocab(self) -> int:
        """Give the number of tokens."""
        return int(self.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Give the device of the weights."""
        return self.weight.device

    def norm(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Return the final norm of rows of residual vectors, (B, D) to (B, D)."""
        return self._norm(x_BD[:, None])[:, 0]

    def without_division(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Return the linear part of the final norm of rows, (B, D) to (B, D): centred where it
        centres, times its gain, but not divided by their length.
        """
        x_BD = x_BD.float()
        zero_1D, one_1D = torch.zeros_like(x_BD[:1]), torch.ones_like(x_BD[:1])
        dtype = self.weight.dtype
        bias_1D = self.norm(zero_1D.to(dtype)).float()
        # Of equal numbers a norm that centres leaves nothing.
        if torch.allclose(self.norm(one_1D.to(dtype)).float(), bias_1D, atol=1e-3):
            x_BD = x_BD - x_BD.mean(dim=-1, keepdim=True)
        rms_B1 = x_BD.square().mean(dim=-1, keepdim=True).sqrt().clamp_min(1e-30)
        return (self.norm((x_BD / rms_B1).to(dtype)).float() - bias_1D) * rms_B1

    def logits(
        self,
        h_BD: torch.Tensor,
        tokens: slice = slice(None),
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits before `finish` of normed rows for a slice of the vocabulary: (B, V)."""
        logits_BV = torch.mm(h_BD, self.weight[tokens].T, out=out)
        return logits_BV if self.bias is None else logits_BV.add_(self.bias[tokens])

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale and soft cap; both keep the order of logits. In place, unless a gradient is
        wanted, which needs what would be overwritten.
        """
        if logits.requires_grad:
            capped = logits * self.scale
            return capped if self.softcap is None else (capped / self.softcap).tanh() * self.softcap
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits
