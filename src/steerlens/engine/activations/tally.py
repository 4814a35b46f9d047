"""The running result of one SAE: counts, sums and top examples of every feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from steerlens.engine.activations import ARRAYS, DETAIL_ARRAYS, Activations, Details
from steerlens.engine.activations.details import Histogram, histogram, no_activations, windows
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError

COMPACTED_AT_ONCE = 4096
"""Features whose examples are sorted at a time."""

Part = tuple[torch.Tensor, ...]
"""Value, piece and position, each (F, n), and with details the windows, (F, n, W)."""
Batch = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, Histogram] | None
]
"""Largest activation of each piece and its position, (B, F); times fired and sum, (F,); details:
windows (B, F, W) and histogram."""


class _TopExamples:
    """The pieces with the largest activation of each feature; earlier pieces win ties.

    Activations that agree to about four digits are ties: texts that begin alike have the same
    activation up to rounding, which depends on the batch.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.parts: list[Part] = []
        """What has come since, and first the best of what came before; each (F, some)."""

    def add(
        self,
        value_BF: torch.Tensor,
        piece_B: torch.Tensor,
        position_BF: torch.Tensor,
        window_BFW: torch.Tensor | None = None,
    ) -> None:
        piece_FB = piece_B.int().expand(value_BF.shape[1], -1)
        window = () if window_BFW is None else (window_BFW.transpose(0, 1),)
        self.parts.append((value_BF.T.float(), piece_FB, position_BF.T.int(), *window))
        if sum(part[0].shape[1] for part in self.parts) >= 3 * self.n:
            self.compact()

    def compact(self) -> Part:
        """Return the best so far, falling: at most n of each feature."""
        parts: list[Part] = []
        for features in torch.arange(len(self.parts[0][0])).split(COMPACTED_AT_ONCE):
            rows = slice(int(features[0]), int(features[-1]) + 1)
            columns = zip(*self.parts, strict=True)
            columns_sorted = [
                torch.cat([part[rows] for part in column], dim=1) for column in columns
            ]
            order = _order(columns_sorted[0], columns_sorted[1])[:, : self.n]
            parts.append(
                tuple(
                    torch.take_along_dim(tensor, order[(..., *[None] * (tensor.ndim - 2))], 1)
                    for tensor in columns_sorted
                )
            )
        self.parts = [tuple(torch.cat(column) for column in zip(*parts, strict=True))]
        return self.parts[0]


def _order(value: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """Return places of each row's values, none negative, from the largest on; then by piece."""
    # Floats that are not negative sort as their bits do; the last 11 of 23 digits are cut off.
    digits = (value.view(torch.int32).long() + 2**10) >> 11
    return ((digits << 31) - piece).argsort(dim=1, descending=True)


class Tally:
    """The running result of one subject."""

    def __init__(
        self, subject: Subject, n_examples: int, begun: Activations | None, details: bool = False
    ) -> None:
        self.subject = subject
        self.device = subject.sae.W_dec.device
        self.top = _TopExamples(n_examples)
        self.fired_F = torch.zeros(subject.d_sae, dtype=torch.int64, device=self.device)
        self.sum_F = torch.zeros(subject.d_sae, dtype=torch.float64, device=self.device)
        if begun is not None:
            arrays = [torch.from_numpy(getattr(begun, name)).to(self.device) for name in ARRAYS]
            self.fired_F, self.sum_F = arrays[0].clone(), arrays[1].clone()
            self.top.parts = [(arrays[2], arrays[3], arrays[4])]
        self.histogram = no_activations(subject.d_sae, self.device) if details else None
        if details and begun is not None:
            window_FNW, *bins = (
                torch.from_numpy(getattr(begun.details, name)).to(self.device)
                for name in DETAIL_ARRAYS
            )
            self.top.parts = [(*self.top.parts[0], window_FNW)]
            self.histogram = Histogram(*bins)

    def of_batch(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor) -> Batch:
        """Return what a batch has to say; nothing is added yet.

        Few activations are not zero, so they are gathered first: reductions over all of them
        would cost several times as much.
        """
        acts_BLF = self.subject.sae.encode(x_BLD.to(self.device))
        acts = acts_BLF.flatten()
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
        value_BF, position_BF = value_BF.view(B, F), position_BF.view(B, F)
        if self.histogram is None:
            return value_BF, position_BF, fired_F, sum_F, None
        mask_BL, first = mask_BL.to(self.device), self.subject.n_uncounted
        window_BFW = windows(acts_BLF, value_BF, position_BF, mask_BL, first)
        details = window_BFW, histogram(feature, value, value_BF.amax(0))
        return value_BF, position_BF, fired_F, sum_F, details

    def add(self, batch: Batch, pieces: Sequence[int]) -> None:
        """Count a batch of pieces."""
        value_BF, position_BF, fired_F, sum_F, details = batch
        piece_B = torch.tensor(pieces, device=self.device)
        self.top.add(value_BF, piece_B, position_BF, details[0] if details else None)
        if self.histogram is not None and details:
            self.histogram = self.histogram + details[1]
        self.fired_F += fired_F
        self.sum_F += sum_F

    def result(self, pieces: list[np.ndarray], n_tokens: int) -> Activations:
        """Return what was counted."""
        top = self.top.compact()
        named = _as_numpy(ARRAYS, (self.fired_F, self.sum_F, *top[:3]))
        details = None
        if self.histogram is not None:
            details = Details(**_as_numpy(DETAIL_ARRAYS, (top[3], *self.histogram)))
        return Activations(n_tokens=n_tokens, pieces=list(pieces), details=details, **named)


def _as_numpy(names: Sequence[str], arrays: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: array.cpu().numpy().copy() for name, array in zip(names, arrays, strict=True)}
