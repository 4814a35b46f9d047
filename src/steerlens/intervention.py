"""The edit of Eq. 5-6, in the one place where it lives.

At the SAE's hook, at the last position: encode `x` to `a`; raise one entry of it by `s * a_max`,
where `a_max` is the largest entry of `a`; write back `decode(a~)` plus, when the error is kept,
`y - decode(a)`. Here `y` is what the SAE reconstructs: `x` itself, or the value at a transcoder's
output hook.

Decoding dense activations for every row would cost B x F x D. Every decoder that SAELens scores
with here is affine in `a`, so `decode(a~) - decode(a)` is a multiple of one row of it; that is
checked against SAELens' own `decode` for each subject before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from steerlens.errors import SteerlensError
from steerlens.subject.site import is_transcoder

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class PreparedEdit:
    """Everything about the edit at one position that doesn't depend on the feature."""

    sae: SAE[Any]
    base_D: torch.Tensor
    """(D,): what is written back when no feature is raised."""
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
        """(B, D): the vector to write back when each of `features` is steered."""
        return self.base_D + (factor * self.a_max) * self.decoder_rows(features)


@torch.no_grad()
def prepare_edit(
    sae: SAE[Any], x_1LD: torch.Tensor, out_D: torch.Tensor, keep_error: bool = True
) -> PreparedEdit:
    """The edit at the last position of a prompt.

    Args:
        sae: an SAE or a transcoder.
        x_1LD: (1, L, d_in): the vectors at the hook that the SAE reads; all positions, because a
            temporal SAE looks back.
        out_D: (d_out,): the vector to change.
        keep_error: keep what the SAE fails to reconstruct.

    Raises:
        SteerlensError: for an SAE whose decoder isn't affine.
    """
    x_1LD = x_1LD.to(sae.device)
    feature_acts, out_scale = _encode(sae, x_1LD)
    base_D = out_D
    if not keep_error:
        target_D = out_D if is_transcoder(sae) else x_1LD[0, -1]
        base_D = out_D + (sae(x_1LD)[0, -1] - target_D).to(out_D)
    edit = PreparedEdit(
        sae=sae, base_D=base_D, a_max=feature_acts[0, -1].max(), out_scale=out_scale
    )
    _check_affine(edit, x_1LD)
    return edit


def _encode(sae: SAE[Any], x_1LD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature activations, and what the normalisation will multiply the decoded last vector by."""
    feature_acts = sae.encode(x_1LD)
    left: Any = sae  # what `encode` leaves for `decode`
    out_scale = torch.ones((), dtype=x_1LD.dtype, device=x_1LD.device)
    match str(sae.cfg.normalize_activations):
        case _ if is_transcoder(sae):
            pass  # its output is another hook's value: SAELens doesn't scale it back
        case "layer_norm":
            out_scale = left.ln_std[0, -1, 0]
        case "constant_norm_rescale":
            out_scale = 1.0 / left.x_norm_coeff[0, -1, 0]
        case "constant_scalar_rescale":  # of temporal SAEs
            out_scale = out_scale / left.cfg.activation_normalization_factor
    return feature_acts, out_scale


def _check_affine(edit: PreparedEdit, x_1LD: torch.Tensor) -> None:
    """Compares `decoder_rows` with SAELens' own encode and decode for a few features."""
    sae = edit.sae
    probes = sorted({0, sae.cfg.d_sae // 2, sae.cfg.d_sae - 1})
    step = edit.a_max.clamp(min=1.0)
    ours = step * edit.decoder_rows(torch.tensor(probes))
    # One row as it is, then one for each probe.
    feature_acts = sae.encode(x_1LD.expand(1 + len(probes), -1, -1)).clone()
    for row, feature in enumerate(probes, start=1):
        feature_acts[row, :, feature] += step
    before, *raised = sae.decode(feature_acts)[:, -1]
    tolerance = 1e-3 if ours.dtype == torch.float32 else 0.05
    for row, after in zip(ours, raised, strict=True):
        change = after - before
        scale = before.abs().max() + change.abs().max()
        if not torch.allclose(change, row, rtol=0, atol=float(tolerance * scale)):
            raise SteerlensError(
                f"an SAE of architecture {sae.cfg.architecture()!r} can't be steered exactly: its "
                "decoder is not affine in the feature activations."
            )
