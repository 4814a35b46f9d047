"""The edit of Eq. 5-6, in the one place where it lives.

At the SAE's hook, at the last position: encode `x` to `a`; raise one entry of it by `s * a_max`,
where `a_max` is the largest entry of `a`; write back `decode(a~)` plus, when the error is kept,
`x - decode(a)`.

Decoding dense activations for every row would cost B x F x D. Every decoder that SAELens scores
with here is affine in `a`, so `decode(a~) - decode(a)` is a multiple of one row of it; that is
checked against SAELens' own `decode` for each subject before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class PreparedEdit:
    """Everything about the edit at one position that doesn't depend on the feature."""

    sae: SAE[Any]
    base_D: torch.Tensor
    """(D,): `x` when the error is kept, else `decode(a)`."""
    a_max: torch.Tensor
    """Scalar: the largest feature activation at this position."""
    out_scale: torch.Tensor
    """Scalar: what the SAE's run-time normalisation multiplies decoded vectors by."""

    def decoder_rows(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D): what one unit of each feature adds to `decode`, at this position."""
        features = features.to(self.sae.W_dec.device)
        rows_BD = self.sae.W_dec[features]
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):
            rows_BD = rows_BD / rows_BD.norm(dim=-1, keepdim=True)
        return rows_BD * self.out_scale

    def rows(self, features: torch.Tensor, factor: float) -> torch.Tensor:
        """(B, D): the residual vector to write back when each of `features` is steered."""
        return self.base_D + (factor * self.a_max) * self.decoder_rows(features)


@torch.no_grad()
def prepare_edit(sae: SAE[Any], x_D: torch.Tensor, keep_error: bool = True) -> PreparedEdit:
    """The edit of residual vector `x_D`, shape (D,); refuses an SAE whose decoder isn't affine."""
    x_11D = x_D.to(sae.device)[None, None]
    a_F, reconstruction_D, out_scale = _encode_decode(sae, x_11D)
    edit = PreparedEdit(
        sae=sae,
        base_D=x_D if keep_error else reconstruction_D.to(x_D.dtype),
        a_max=a_F.max(),
        out_scale=out_scale,
    )
    _check_affine(edit, x_11D)
    return edit


def _encode_decode(
    sae: SAE[Any], x_11D: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(feature_acts, reconstruction, output scale). `decode` consumes what `encode` leaves."""
    feature_acts = sae.encode(x_11D)
    left: Any = sae  # the attributes are there between `encode` and `decode` only
    match str(sae.cfg.normalize_activations):
        case "layer_norm":
            out_scale = left.ln_std
        case "constant_norm_rescale":
            out_scale = 1.0 / left.x_norm_coeff
        case _:
            out_scale = torch.ones((), dtype=x_11D.dtype, device=x_11D.device)
    reconstruction = sae.decode(feature_acts)
    return feature_acts[0, 0], reconstruction[0, 0], out_scale.reshape(())


def _check_affine(edit: PreparedEdit, x_11D: torch.Tensor) -> None:
    """Compares `decoder_rows` with SAELens' own encode and decode for a few features."""
    sae = edit.sae
    probes = sorted({0, sae.cfg.d_sae // 2, sae.cfg.d_sae - 1})
    step = edit.a_max.clamp(min=1.0)
    ours = step * edit.decoder_rows(torch.tensor(probes))
    tolerance = 1e-3 if ours.dtype == torch.float32 else 0.05
    for feature, row in zip(probes, ours, strict=True):
        feature_acts = sae.encode(x_11D)
        before = sae.decode(feature_acts)[0, 0]
        feature_acts = sae.encode(x_11D).clone()
        feature_acts[..., feature] += step
        change = sae.decode(feature_acts)[0, 0] - before
        scale = before.abs().max() + change.abs().max()
        if not torch.allclose(change, row, rtol=0, atol=float(tolerance * scale)):
            raise SteerlensError(
                f"an SAE of architecture {sae.cfg.architecture()!r} can't be steered exactly: its "
                "decoder is not affine in the feature activations."
            )
