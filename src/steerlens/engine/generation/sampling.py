"""The next token of every row, drawn with noise of the row's own.

Tokens are drawn by the Gumbel trick, in two steps so that a row needs about 2 sqrt(V) random
numbers instead of V: first a block of the vocabulary by its total probability, then a token inside
it. The noise of a row depends on its seed and the step only; so does the token, but for rounding:
the logits of a row differ in their last bits between machines, numbers of threads, and versions of
libraries. Where that could have decided, the choice is counted as a near tie.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from steerlens.engine.padding import rows_at_once

ROUNDING = 2e-5
"""Float32 logits of a row differ by less than this between machines, relative to the largest: with
another order of additions, on a model of 6.7M parameters at most 4e-6 was seen."""
COARSE_ROUNDING = 1e-2
"""The same for 16-bit numbers."""

BYTES_AT_ONCE = 8 * 1024**2


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.7
    """0 is greedy: the most probable token, the first of equal ones."""
    top_k: int | None = None
    """Only the k most probable tokens."""
    top_p: float | None = None
    """Only the most probable tokens that together have at least this probability."""


class Choice(NamedTuple):
    """What was drawn for each row."""

    token_B: torch.Tensor
    near_tie_B: torch.Tensor


def row_seed(*parts: Any) -> int:
    """Return a seed of 63 bits from all of `parts`."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Noise:
    """Random numbers of B rows, each from its own generator."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._rows = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self._rows = [self._rows[row] for row in rows.tolist()]

    def gumbel(self, n: int) -> torch.Tensor:
        """Return (B, n) float64 standard Gumbel noise: each row's next n numbers."""
        uniform = np.stack([row.random(n) for row in self._rows])
        return torch.from_numpy(-np.log(-np.log(uniform + np.finfo(float).tiny)))


def next_tokens(logits_BV: torch.Tensor, sampling: Sampling, noise: Noise) -> Choice:
    """Return one token for each row of float logits (B, V)."""
    size = math.isqrt(logits_BV.shape[1] - 1) + 1
    n_blocks = -(-logits_BV.shape[1] // size)
    noise_BN = torch.empty(len(logits_BV), 0, dtype=torch.float64)
    if sampling.temperature > 0:
        noise_BN = noise.gumbel(n_blocks + size)
    noise_BN = noise_BN.to(logits_BV.device)
    # A few rows at a time: on a CPU, what stays in the cache is several times faster.
    at_once = rows_at_once(BYTES_AT_ONCE, 4 * logits_BV.shape[1])
    if logits_BV.device.type != "cpu":
        at_once = len(logits_BV)
    parts = [
        _choose(part_BV, sampling, part_BN, n_blocks)
        for part_BV, part_BN in zip(logits_BV.split(at_once), noise_BN.split(at_once), strict=True)
    ]
    return Choice(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _choose(
    logits_BV: torch.Tensor, sampling: Sampling, noise_BN: torch.Tensor, n_blocks: int
) -> Choice:
    rounding = ROUNDING if logits_BV.dtype == torch.float32 else COARSE_ROUNDING
    logits_BV = logits_BV.float()
    tolerance_B = rounding * logits_BV.abs().amax(-1).clamp(min=1.0)
    if sampling.temperature == 0:
        token_B, margin_B = _best(logits_BV)
        return Choice(token_B, margin_B < tolerance_B)
    logits_BV = logits_BV / sampling.temperature
    tolerance_B = tolerance_B / sampling.temperature
    filters = _filters(logits_BV, sampling, tolerance_B)
    drawn = [_draw(allowed_BV, noise_BN, n_blocks) for allowed_BV in filters]
    token_B, margin_B = drawn[0]
    near_B = margin_B < tolerance_B
    for other_B, _ in drawn[1:]:  # what a slightly wider or narrower filter would have drawn
        near_B |= other_B != token_B
    return Choice(token_B, near_B)


def _best(values_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the place of the largest value, the first of equal ones, and how far it is ahead."""
    if values_BN.shape[1] == 1:
        zeros_B = torch.zeros(len(values_BN), dtype=torch.int64, device=values_BN.device)
        return zeros_B, torch.full_like(values_BN[:, 0], math.inf)
    top_B2 = values_BN.topk(2, dim=-1).values
    first_B = (values_BN == top_B2[:, :1]).int().argmax(-1)
    return first_B, top_B2[:, 0] - top_B2[:, 1]


def _draw(
    logits_BV: torch.Tensor, noise_BN: torch.Tensor, n_blocks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a token from softmax(logits), and the smaller margin of the two choices."""
    size = noise_BN.shape[1] - n_blocks
    full = logits_BV.shape[1] // size * size
    totals = [logits_BV[:, :full].unflatten(1, (-1, size)).logsumexp(-1)]
    if full < logits_BV.shape[1]:
        totals.append(logits_BV[:, full:].logsumexp(-1, keepdim=True))
    block_B, block_margin_B = _best(torch.cat(totals, dim=1).double() + noise_BN[:, :n_blocks])
    token_BS = block_B[:, None] * size + torch.arange(size, device=logits_BV.device)
    inside_BS = logits_BV.gather(1, token_BS.clamp(max=logits_BV.shape[1] - 1)).double()
    inside_BS.masked_fill_(token_BS >= logits_BV.shape[1], -math.inf)
    place_B, margin_B = _best(inside_BS + noise_BN[:, n_blocks:])
    return block_B * size + place_B, torch.minimum(block_margin_B, margin_B)


def _filters(
    logits_BV: torch.Tensor, sampling: Sampling, tolerance_B: torch.Tensor
) -> list[torch.Tensor]:
    """Return logits with -inf where a token isn't allowed: as asked, and a rounding wider and
    narrower.
    """
    if sampling.top_k is None and sampling.top_p is None:
        return [logits_BV]
    d_vocab = logits_BV.shape[1]
    most = min(sampling.top_k or d_vocab, d_vocab)
    # The largest ones and the first that isn't among them; -inf where there is none.
    largest_BK = logits_BV.topk(min(most + 1, d_vocab), dim=-1).values
    largest_BK = torch.nn.functional.pad(largest_BK, (0, 1), value=-math.inf)
    before_BK = None
    if sampling.top_p is not None and sampling.top_p < 1:
        p_BK = largest_BK[:, :most].double().softmax(-1)
        before_BK = p_BK.cumsum(-1) - p_BK

    def allowed(slack: torch.Tensor | float) -> torch.Tensor:
        """Return, as (B, 1), how many tokens, if their probabilities are known but for `slack`."""
        if before_BK is None or sampling.top_p is None:
            return torch.full_like(largest_BK[:, :1], most, dtype=torch.int64)
        return (before_BK < sampling.top_p + slack).sum(-1, keepdim=True).clamp(min=1)

    slack_B1 = tolerance_B[:, None]
    exact_B1, wide_B1, narrow_B1 = (allowed(slack) for slack in (0.0, slack_B1, -slack_B1))
    least_B1 = largest_BK.gather(-1, exact_B1 - 1)
    wide_least_B1 = largest_BK.gather(-1, wide_B1 - 1) - slack_B1
    # Surely allowed is what is clearly ahead of the first that may be left out.
    narrow_least_B1 = torch.maximum(
        largest_BK.gather(-1, narrow_B1 - 1), largest_BK.gather(-1, narrow_B1) + slack_B1
    ).minimum(largest_BK[:, :1])
    return [
        logits_BV.masked_fill(logits_BV < least, -math.inf)
        for least in (least_B1, wide_least_B1, narrow_least_B1)
    ]
