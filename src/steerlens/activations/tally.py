"""The running result of one SAE: counts, sums and top examples of every feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from steerlens.activations import ARRAYS, Activations
from steerlens.errors import SteerlensError
from steerlens.subject import Subject

COMPACTED_AT_ONCE = 4096
"""Features whose examples are sorted at a time."""

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Largest activation of each piece and its position, (B, F); times fired and sum, (F,)."""


class _TopExamples:
    """The pieces with the largest activation of each feature; earlier pieces win ties.

    Activations that agree to about four digits are ties: texts that begin alike have the same
    activation up to rounding, which depends on the batch.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.parts: list[Triple] = []
        """What has come since, and first the best of what came before; each (F, some)."""

    def add(self, value_BF: torch.Tensor, piece_B: torch.Tensor, position_BF: torch.Tensor) -> None:
        piece_FB = piece_B.int().expand(value_BF.shape[1], -1)
        self.parts.append((value_BF.T.float(), piece_FB, position_BF.T.int()))
        if sum(part[0].shape[1] for part in self.parts) >= 3 * self.n:
            self.compact()

    def compact(self) -> Triple:
        """The best so far, falling: value, piece and position, each (F, at most n)."""
        kept: list[Triple] = []
        for features in torch.arange(len(self.parts[0][0])).split(COMPACTED_AT_ONCE):
            rows = slice(int(features[0]), int(features[-1]) + 1)
            found = [torch.cat([part[i][rows] for part in self.parts], dim=1) for i in range(3)]
            order = _order(found[0], found[1])[:, : self.n]
            value, piece, position = (tensor.gather(1, order) for tensor in found)
            kept.append((value, piece, position))
        self.parts = [tuple(torch.cat(column) for column in zip(*kept, strict=True))]  # type: ignore[list-item]
        return self.parts[0]


def _order(value: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """Places of each row's values, none negative, from the largest on; then by piece."""
    # Floats that are not negative sort as their bits do; the last 11 of 23 digits are cut off.
    digits = (value.view(torch.int32).long() + 2**10) >> 11
    return ((digits << 31) - piece).argsort(dim=1, descending=True)


class Tally:
    """The running result of one subject."""

    def __init__(self, subject: Subject, n_examples: int, begun: Activations | None) -> None:
        self.subject = subject
        self.device = subject.sae.W_dec.device
        self.top = _TopExamples(n_examples)
        self.fired_F = torch.zeros(subject.d_sae, dtype=torch.int64, device=self.device)
        self.sum_F = torch.zeros(subject.d_sae, dtype=torch.float64, device=self.device)
        if begun is not None:
            arrays = [torch.from_numpy(getattr(begun, name)).to(self.device) for name in ARRAYS]
            self.fired_F, self.sum_F = arrays[0].clone(), arrays[1].clone()
            self.top.parts = [(arrays[2], arrays[3], arrays[4])]

    def of_batch(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor) -> Batch:
        """What a batch has to say; nothing is added yet.

        Few activations are not zero, so they are gathered first: reductions over all of them
        would cost several times as much.
        """
        acts = self.subject.sae.encode(x_BLD.to(self.device)).flatten()
        (B, L), F = mask_BL.shape, self.subject.d_sae
        at = acts.nonzero()[:, 0]
        value = acts[at].float()
        if not torch.isfinite(value).all():
            raise SteerlensError(
                f"layer {self.subject.layer} has NaN activations in {self.subject.lm.dtype}; use "
                "dtype=float32."
            )
        fires = (value > 0) & mask_BL.to(self.device).flatten()[at // F]
        at, value = at[fires], value[fires]
        token, feature = at // F, at % F
        piece, position = token // L, token % L
        cell = piece * F + feature
        zeros = torch.zeros(B * F, device=self.device)
        value_BF = zeros.scatter_reduce(0, cell, value, "amax")
        largest = value == value_BF[cell]
        position_BF = torch.full_like(zeros, L, dtype=torch.int64)
        position_BF.scatter_reduce_(0, cell[largest], position[largest], "amin")
        position_BF[value_BF == 0] = 0
        fired_F = torch.bincount(feature, minlength=F)
        sum_F = torch.bincount(feature, weights=value.double(), minlength=F)
        return value_BF.view(B, F), position_BF.view(B, F), fired_F, sum_F

    def add(self, batch: Batch, pieces: Sequence[int]) -> None:
        value_BF, position_BF, fired_F, sum_F = batch
        self.top.add(value_BF, torch.tensor(pieces, device=self.device), position_BF)
        self.fired_F += fired_F
        self.sum_F += sum_F

    def result(self, pieces: list[np.ndarray], n_tokens: int) -> Activations:
        arrays = (self.fired_F, self.sum_F, *self.top.compact())
        named = {
            name: array.cpu().numpy().copy() for name, array in zip(ARRAYS, arrays, strict=True)
        }
        return Activations(n_tokens=n_tokens, pieces=list(pieces), **named)
