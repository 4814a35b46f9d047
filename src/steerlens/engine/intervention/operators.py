"""Operators: by how much a feature's activation changes, one function each, by its name.

An operator is given, for B rows, L positions and N features,

- `acts()`: their activations `a` (B, L, N); a plain direction, which has none, is refused there;
- `goal_BLN`: `s u`, the factor times the unit, each feature's share of it;
- `share_B1N`: `s` alone, each feature's share of it;

and returns what is added to the activations, (B, L, N).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def add(acts: Callable[[], Tensor], goal_BLN: Tensor, share_B1N: Tensor) -> Tensor:
    """Return `a + s u`."""
    return goal_BLN


def clamp(acts: Callable[[], Tensor], goal_BLN: Tensor, share_B1N: Tensor) -> Tensor:
    """Return `s u`."""
    return goal_BLN - acts()


def min_clamp(acts: Callable[[], Tensor], goal_BLN: Tensor, share_B1N: Tensor) -> Tensor:
    """Return `max(a, s u)`."""
    return (goal_BLN - acts()).clamp(min=0)


def ablate(acts: Callable[[], Tensor], goal_BLN: Tensor, share_B1N: Tensor) -> Tensor:
    """Return `(1 - s) a`, so that a factor of 1 removes the feature."""
    return -share_B1N * acts()
