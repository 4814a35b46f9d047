"""Units of the steering factor: one function each, by its name.

A unit is given what the SAE makes of the vectors at its hook, these vectors, and what is steered in
each row. It returns `u`, a tensor that broadcasts to (B, L, N): B rows, L positions, N features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from torch import Tensor

    from steerlens.engine.intervention import Encoded, Targets


def a_max(encoded: Encoded, out_BLD: Tensor, targets: Targets) -> Tensor:
    """Return the largest activation at the position (the paper)."""
    return encoded.acts_BLF.amax(dim=-1, keepdim=True)


def max_activation(encoded: Encoded, out_BLD: Tensor, targets: Targets) -> Tensor:
    """Return the feature's own maximum over a corpus (AxBench)."""
    if targets.max_activation_BN is None:
        raise SteerlensError("unit max_activation needs the features' maximum activations.")
    return targets.max_activation_BN[:, None]


def norm(encoded: Encoded, out_BLD: Tensor, targets: Targets) -> Tensor:
    """Return what changes the vector by its own length."""
    length_BL = out_BLD.norm(dim=-1).to(encoded.acts_BLF) / encoded.out_scale_BL
    return length_BL[..., None] / targets.vectors_BND.norm(dim=-1)[:, None]


def raw(encoded: Encoded, out_BLD: Tensor, targets: Targets) -> Tensor:
    """Return 1, so that a factor is in the SAE's own numbers."""
    return encoded.acts_BLF.new_ones(())
