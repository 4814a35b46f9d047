"""The edit of Eq. 5-6, in the one place where it lives.

At the SAE's hook, at a position: encode `x` to `a`; change some entries of `a`, in the paper one by
`s * a_max`, where `a_max` is the largest entry; write back `decode(a~)` plus, when the error is
kept, `y - decode(a)`. Here `y` is what the SAE reconstructs: `x` itself, or the value at a
transcoder's output hook.

Decoding dense activations for every row would cost B x F x D. Every decoder that SAELens scores
with here is affine in `a`, so `decode(a~) - decode(a)` is a combination of its rows; `check_affine`
compares that with SAELens' own `decode` for each subject before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from steerlens.config.registry import load_part
from steerlens.config.schema import unit_of_today
from steerlens.engine.subject.site import is_transcoder
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Operation:
    """What is done to a feature's activation, the same in every row."""

    operator: str = "add"
    """Name of a function in `operators`, or of another package's."""
    unit: str = "a_max"
    """Name of a function in `units`, or of another package's."""
    keep_error: bool = True
    """Keep what the SAE fails to reconstruct (the authors' code) or drop it (the paper's Eq. 6)."""

    def __post_init__(self) -> None:
        if isinstance(self.unit, str):
            object.__setattr__(self, "unit", unit_of_today(self.unit))
        load_part("operators", self.operator)
        load_part("units", self.unit)


PLAIN = -1
"""Stands for the feature where a plain direction is added."""


@dataclass(frozen=True)
class Targets:
    """What is steered in each of B rows: N features, or N plain directions.

    A row whose factor is 0 is not edited at all.
    """

    vectors_BND: torch.Tensor
    """(B, N, D): what one unit of each adds to what the SAE decodes, before its normalisation."""
    factor_B: torch.Tensor
    """(B,): steering factors s; may be negative."""
    weights_BN: torch.Tensor
    """(B, N): share of each in the row's factor; 0 leaves it as it is, whatever the operator."""
    features_BN: torch.Tensor | None = None
    """(B, N): feature ids, -1 for plain directions, which can only be added; None = all are."""
    max_activation_BN: torch.Tensor | None = None
    """(B, N): for unit max_activation."""

    def __len__(self) -> int:
        return len(self.factor_B)

    def rows(self, rows: torch.Tensor | slice) -> Targets:
        """Return those of `rows` only."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value[rows] for name, value in fields.items()})


def join_targets(parts: Sequence[Targets]) -> Targets:
    """Return the rows of all `parts`, which have the same N, in their order."""
    if len(parts) == 1:
        return parts[0]

    def of_all(name: str) -> list[torch.Tensor]:
        return [value for part in parts if (value := getattr(part, name)) is not None]

    features = None
    if of_all("features_BN"):
        features = torch.cat(
            [
                torch.full_like(part.weights_BN, PLAIN, dtype=torch.int64)
                if part.features_BN is None
                else part.features_BN
                for part in parts
            ]
        )
    largest = of_all("max_activation_BN")
    return Targets(
        vectors_BND=torch.cat(of_all("vectors_BND")),
        factor_B=torch.cat(of_all("factor_B")),
        weights_BN=torch.cat(of_all("weights_BN")),
        features_BN=features,
        # The unit that needs them refuses rows without.
        max_activation_BN=torch.cat(largest) if len(largest) == len(parts) else None,
    )


def feature_targets(
    sae: SAE[Any],
    features_BN: torch.Tensor,
    factor_B: torch.Tensor,
    weights_BN: torch.Tensor | None = None,
    max_activation_BN: torch.Tensor | None = None,
) -> Targets:
    """Return rows that steer N features each; `weights_BN` are 1 by default."""
    device, dtype = sae.W_dec.device, sae.W_dec.dtype
    features_BN = features_BN.to(device)
    if weights_BN is None:
        weights_BN = torch.ones(features_BN.shape)
    return Targets(
        vectors_BND=decoder_rows(sae, features_BN),
        factor_B=factor_B.to(device, dtype),
        weights_BN=weights_BN.to(device, dtype),
        features_BN=features_BN,
        max_activation_BN=None
        if max_activation_BN is None
        else max_activation_BN.to(device, dtype),
    )


def decoder_rows(sae: SAE[Any], features: torch.Tensor) -> torch.Tensor:
    """Return, as (..., D), what one unit of each feature adds to what the SAE decodes."""
    rows = sae.W_dec[features.to(sae.W_dec.device)]
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        rows = rows / rows.norm(dim=-1, keepdim=True)
    return rows


class Encoded(NamedTuple):
    """What the SAE makes of vectors at its hook: B rows (or one for all), L positions."""

    acts_BLF: torch.Tensor
    out_scale_BL: torch.Tensor
    """What the SAE's run-time normalisation multiplies decoded vectors by."""
    base_BLD: torch.Tensor
    """What is written back where nothing is steered: with the error, the vectors as they were."""


@torch.no_grad()
def encode(
    sae: SAE[Any],
    x_BLD: torch.Tensor,
    out_BLD: torch.Tensor,
    keep_error: bool = True,
    positions: slice = slice(None),
) -> Encoded:
    """Return the SAE's view of `x_BLD` at `positions`.

    Args:
        sae: an SAE or a transcoder.
        x_BLD: (B, L, d_in): the vectors at the hook that the SAE reads; all positions if it is a
            temporal SAE, which looks back.
        out_BLD: (B, l, d_out): the vectors to change, at `positions`.
        keep_error: keep what the SAE fails to reconstruct.
        positions: which of the L positions are wanted.
    """
    x_BLD = x_BLD.to(sae.device)
    acts_BLF = sae.encode(x_BLD)[:, positions]
    scale_BL = _out_scale(sae, x_BLD)[:, positions]
    base_BLD = out_BLD
    if not keep_error:
        target_BLD = out_BLD if is_transcoder(sae) else x_BLD[:, positions]
        base_BLD = out_BLD + (sae(x_BLD)[:, positions] - target_BLD).to(out_BLD)
    return Encoded(acts_BLF, scale_BL, base_BLD)


def _out_scale(sae: SAE[Any], x_BLD: torch.Tensor) -> torch.Tensor:
    state: Any = sae  # what `encode` leaves for `decode`
    ones_BL = torch.ones(x_BLD.shape[:2], dtype=x_BLD.dtype, device=x_BLD.device)
    match str(sae.cfg.normalize_activations):
        case _ if is_transcoder(sae):
            return ones_BL  # its output is another hook's value: SAELens doesn't scale it back
        case "layer_norm":
            return state.ln_std[..., 0]
        case "constant_norm_rescale":
            return 1.0 / state.x_norm_coeff[..., 0]
        case "constant_scalar_rescale":  # of temporal SAEs
            return ones_BL / state.cfg.activation_normalization_factor
        case "none" | "expected_average_only_in":
            return ones_BL
        case scaling:
            raise SteerlensError(
                f"an SAE whose activations are normalised by {scaling!r} can't be steered yet."
            )


@torch.no_grad()
def edited(
    operation: Operation, encoded: Encoded, out_BLD: torch.Tensor, targets: Targets
) -> torch.Tensor:
    """Return, as (B, L, D), the vectors to write back, one row for each of `targets`.

    `encoded` and `out_BLD` have B rows, or one that stands for all.
    """
    # A plain direction isn't the SAE's to scale.
    unscaled_BL = torch.ones_like(encoded.out_scale_BL)
    if targets.features_BN is not None:
        plain_B1 = targets.features_BN[:, :1] == PLAIN
        unscaled_BL = torch.where(plain_B1, unscaled_BL, encoded.out_scale_BL)
    encoded = encoded._replace(out_scale_BL=unscaled_BL)
    base_BLD, scale_BL = encoded.base_BLD, encoded.out_scale_BL
    step_BLN = _steps(operation, encoded, out_BLD, targets)
    step_BLN = step_BLN.masked_fill((targets.weights_BN == 0)[:, None], 0)
    change_BLD = _combined(step_BLN, targets.vectors_BND)
    steered_BLD = base_BLD + (change_BLD * scale_BL[..., None]).to(base_BLD)
    unsteered_B = (targets.factor_B == 0).to(base_BLD.device)
    return torch.where(unsteered_B[:, None, None], out_BLD, steered_BLD)


def _combined(step_BLN: torch.Tensor, vectors_BND: torch.Tensor) -> torch.Tensor:
    """Return, as (B, L, D), the sum of each row's vectors, so many steps of each.

    One by one, because a product's additions would have another order for another N, and N depends
    on the other rows of a batch, with which a row is padded by steps of 0.
    """
    pairs = zip(step_BLN.split(1, dim=-1), vectors_BND.split(1, dim=1), strict=True)
    first, *changes = (step_BL1.float() * vector_B1D for step_BL1, vector_B1D in pairs)
    return sum(changes, start=first).to(vectors_BND)


def _steps(
    operation: Operation, encoded: Encoded, out_BLD: torch.Tensor, targets: Targets
) -> torch.Tensor:
    """Return, as (B, L, N), by how much each feature's activation changes."""
    acts_BLF, features_BN = encoded.acts_BLF, targets.features_BN

    def acts() -> torch.Tensor:
        if features_BN is None or (features_BN == PLAIN).any():
            raise SteerlensError(
                f"steer.operator={operation.operator} needs features; a plain direction is only "
                "added."
            )
        index_BLN = features_BN[:, None].expand(-1, acts_BLF.shape[1], -1)
        return acts_BLF.expand(len(targets), -1, -1).gather(-1, index_BLN)

    unit = load_part("units", operation.unit)(encoded, out_BLD, targets)
    share_B1N = targets.factor_B[:, None, None] * targets.weights_BN[:, None]
    return load_part("operators", operation.operator)(acts, share_B1N * unit, share_B1N)


def looks_back(sae: SAE[Any]) -> bool:
    """Return whether a position's activations depend on the positions before it."""
    return sae.cfg.architecture() == "temporal"


@torch.no_grad()
def check_affine(sae: SAE[Any], x_1LD: torch.Tensor) -> None:
    """Compare `decoder_rows` with SAELens' own encode and decode for a few features.

    Raises:
        SteerlensError: for an SAE whose decoder isn't affine.
    """
    x_1LD = x_1LD.to(sae.device)
    probes = torch.tensor(sorted({0, sae.cfg.d_sae // 2, sae.cfg.d_sae - 1}))
    acts_1LF = sae.encode(x_1LD)
    scale = _out_scale(sae, x_1LD)[0, -1]
    step = acts_1LF[0, -1].max().clamp(min=1.0)
    ours = step * scale * decoder_rows(sae, probes)
    # One row as it is, then one for each probe.
    acts_BLF = sae.encode(x_1LD.expand(1 + len(probes), -1, -1)).clone()
    for row, feature in enumerate(probes.tolist(), start=1):
        acts_BLF[row, :, feature] += step
    before, *raised = sae.decode(acts_BLF)[:, -1]
    tolerance = 1e-3 if ours.dtype == torch.float32 else 0.05
    for row, after in zip(ours, raised, strict=True):
        change = after - before
        size = before.abs().max() + change.abs().max()
        if not torch.allclose(change, row, rtol=0, atol=float(tolerance * size)):
            raise SteerlensError(
                f"an SAE of architecture {sae.cfg.architecture()!r} can't be steered exactly: its "
                "decoder is not affine in the feature activations."
            )
