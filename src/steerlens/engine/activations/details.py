"""What a pass keeps to show: activations around each peak, and histograms whose range may grow."""

from __future__ import annotations

from typing import NamedTuple

import torch

from steerlens.engine.activations import BINS, WINDOW


def window_start(position: torch.Tensor, length: torch.Tensor, first: int) -> torch.Tensor:
    """Return where the window around `position` begins in a piece of `length` tokens; same shapes.

    Half of the window stands before the peak, and more where the piece ends. Positions before
    `first`, which count nowhere, are outside of it.
    """
    last_start = (length - WINDOW).clamp(min=first)
    return torch.minimum((position - WINDOW // 2).clamp(min=first), last_start)


def windows(
    acts: torch.Tensor, peak_BF: torch.Tensor, position_BF: torch.Tensor, mask_BL: torch.Tensor,
    first: int,
) -> torch.Tensor:  # fmt: skip
    """Return activations around each peak, (B, F, W), as `Details.window_FNW` has them.

    Args:
        acts: a batch's activations, (B, L, F).
        peak_BF: largest activation of each piece.
        position_BF: where it is.
        mask_BL: positions that count.
        first: the first of them.
    """
    B, L, F = acts.shape
    length_B = L - mask_BL.flip(1).int().argmax(1)
    start_BF = window_start(position_BF, length_B[:, None].expand(B, F), first)
    columns = []
    for offset in range(WINDOW):  # one by one: (B, F, W) indices would need 8 bytes for each byte
        at_BF = (start_BF + offset).clamp(max=L - 1)
        value_BF = acts.gather(1, at_BF[:, None])[:, 0].float()
        value_BF = torch.where(start_BF + offset < length_B[:, None], value_BF, 0).clamp(min=0)
        share_BF = (255 * value_BF / peak_BF.clamp(min=torch.finfo().tiny)).round().clamp(max=255)
        # Rounded, a neighbour could be as large as the peak.
        share_BF = torch.where(start_BF + offset == position_BF, share_BF, share_BF.clamp(max=254))
        columns.append(torch.where(value_BF > 0, share_BF.clamp(min=1), 0).to(torch.uint8))
    return torch.stack(columns, dim=2) * (peak_BF > 0)[..., None]


class Histogram(NamedTuple):
    """Counts of activations, as `Details.bin_FB` and `Details.range_F` have them."""

    bin_FB: torch.Tensor
    range_F: torch.Tensor

    def __add__(self, histogram: Histogram) -> Histogram:  # type: ignore[override]
        """Return the histogram of both: exact, because bins of a power of two merge in pairs."""
        range_F = torch.maximum(self.range_F, histogram.range_F)
        return Histogram(_rescaled(self, range_F) + _rescaled(histogram, range_F), range_F)


def no_activations(d_sae: int, device: torch.device) -> Histogram:
    """Return the histogram of features that haven't fired."""
    return Histogram(
        torch.zeros(d_sae, BINS, dtype=torch.int64, device=device),
        torch.zeros(d_sae, device=device),
    )


def histogram(feature: torch.Tensor, value: torch.Tensor, max_F: torch.Tensor) -> Histogram:
    """Return the histogram of activations `value` > 0 of `feature`, both (n,), with maxima
    `max_F`.
    """
    range_F = torch.where(max_F > 0, torch.ldexp(torch.ones_like(max_F), max_F.frexp()[1]), 0)
    cell = feature * BINS + (value / range_F[feature] * BINS).long()
    bin_FB = torch.bincount(cell, minlength=len(max_F) * BINS).view(-1, BINS)
    return Histogram(bin_FB, range_F)


def _rescaled(old: Histogram, range_F: torch.Tensor) -> torch.Tensor:
    """Return the bins of `old` when they reach up to `range_F` instead."""
    times_F = torch.where(old.range_F > 0, range_F / old.range_F, 1)
    doublings_F = (times_F.frexp()[1] - 1).clamp(max=BINS)
    bins = torch.arange(BINS, device=range_F.device)
    return torch.zeros_like(old.bin_FB).scatter_add(1, bins >> doublings_F[:, None], old.bin_FB)
