"""Questions about next-token distributions, without rows x vocabulary logits in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from steerlens.engine.padding import padded, with_rows
from steerlens.engine.subject.head import Head

ROWS_AT_ONCE = 1024
TOKENS_AT_ONCE = 512
"""Logits are computed for this many rows and, times the size of the model's numbers in bytes,
tokens at a time: small enough for the processor's cache, where softmax and counting then run, large
enough for the matrix product, which is the faster the smaller the numbers are. The same tokens for
any number of rows, because a row's probabilities are added up by these parts."""
GATHER_ROWS = 128


class BestToken(NamedTuple):
    """The best-ranked one of each row's own tokens. Each (B,)."""

    token: torch.Tensor
    """int64 id."""
    rank: torch.Tensor
    """int64: number of tokens in the vocabulary with a larger logit."""
    probability: torch.Tensor
    """float32: exp(logit - logsumexp)."""


def bytes_per_row(k: int) -> int:
    """Return the memory that one more row takes in the functions below, besides the fixed
    chunks.
    """
    return 8 * 4 * k + 64


def _in_tiles(
    compute: Callable[..., Sequence[torch.Tensor]], h_BD: torch.Tensor, *columns: torch.Tensor
) -> list[torch.Tensor]:
    """Return what `compute` makes of padded tiles of rows of `h_BD` and of `columns`, (B, ...)."""
    tiles = zip(*(x.to(h_BD.device).split(ROWS_AT_ONCE) for x in (h_BD, *columns)), strict=True)
    parts = []
    for tile in tiles:
        n_rows = padded(len(tile[0]), ROWS_AT_ONCE, h_BD.device)
        computed = compute(*(with_rows(x, n_rows) for x in tile))
        parts.append([column_B[: len(tile[0])] for column_B in computed])
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _logits_in_chunks(head: Head, h_BD: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first token, logits (B, C) in float32) for a few tokens at a time.

    The same memory for every chunk: fresh memory costs more than the passes over it.
    """
    n_rows = len(h_BD)
    width = min(head.d_vocab, TOKENS_AT_ONCE * h_BD.element_size())
    product = torch.empty(n_rows * width, dtype=h_BD.dtype, device=h_BD.device)
    logits = product
    if product.dtype != torch.float32:
        logits = torch.empty_like(product, dtype=torch.float32)
    for start in range(0, head.d_vocab, width):
        size = min(width, head.d_vocab - start)
        product_BC, logits_BC = (flat[: n_rows * size].view(-1, size) for flat in (product, logits))
        head.logits(h_BD, slice(start, start + size), out=product_BC)
        if product is not logits:
            logits_BC.copy_(product_BC)
        yield start, head.finish(logits_BC)


def _add_logsumexp(lse_B: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
    """Return `lse_B`, in float64, with one more chunk; overwrites the chunk."""
    top_B = logits_BC.amax(dim=-1)
    sum_B = logits_BC.sub_(top_B[:, None]).exp_().sum(dim=-1)
    return torch.logaddexp(lse_B, top_B.double() + sum_B.double().log())


def _no_logsumexp(h_BD: torch.Tensor) -> torch.Tensor:
    return torch.full(h_BD.shape[:1], -torch.inf, dtype=torch.float64, device=h_BD.device)


@torch.no_grad()
def best_token_of_rows(head: Head, h_BD: torch.Tensor, tokens_BK: torch.Tensor) -> BestToken:
    """Return the best of each row's tokens in the next-token distribution of that row's normed
    vector.

    A row's own logits are computed apart, in float32, and stand in for the matrix product's, so
    that a token never outranks itself by rounding and bfloat16 doesn't coarsen probabilities.
    """
    return BestToken(*_in_tiles(partial(_best_token_of_rows, head), h_BD, tokens_BK))


def _best_token_of_rows(head: Head, h_BD: torch.Tensor, tokens_BK: torch.Tensor) -> BestToken:
    own_BK = torch.cat(
        [
            head.finish(token_logits(head, h, tokens))
            for h, tokens in zip(h_BD.split(GATHER_ROWS), tokens_BK.split(GATHER_ROWS), strict=True)
        ]
    )
    best_B, which_B = own_BK.max(dim=-1)
    rank_B = torch.zeros_like(best_B)
    lse_B = _no_logsumexp(h_BD)
    larger = torch.empty(0, device=h_BD.device)
    for start, logits_BC in _logits_in_chunks(head, h_BD):
        in_tile = (tokens_BK >= start) & (tokens_BK < start + logits_BC.shape[1])
        rows, k = in_tile.nonzero(as_tuple=True)
        logits_BC[rows, tokens_BK[rows, k] - start] = own_BK[rows, k]
        # As floats: summing a comparison's booleans costs more.
        if larger.numel() < logits_BC.numel():
            larger = torch.empty_like(logits_BC).flatten()
        larger_BC = larger[: logits_BC.numel()].view_as(logits_BC)
        rank_B += torch.gt(logits_BC, best_B[:, None], out=larger_BC).sum(dim=-1)
        lse_B = _add_logsumexp(lse_B, logits_BC)
    return BestToken(
        token=tokens_BK.gather(1, which_B[:, None])[:, 0],
        rank=rank_B.long(),
        probability=(best_B - lse_B).exp().float(),
    )


@torch.no_grad()
def token_confidence(head: Head, h_BD: torch.Tensor, k: int) -> torch.Tensor:
    """Return the mean negative log-probability (nats) of each row's k most probable tokens: (B,)
    float32.
    """
    return _in_tiles(lambda h_BD: [_token_confidence(head, h_BD, k)], h_BD)[0]


def _token_confidence(head: Head, h_BD: torch.Tensor, k: int) -> torch.Tensor:
    top_BK = torch.full((len(h_BD), k), -torch.inf, device=h_BD.device)
    lse_B = _no_logsumexp(h_BD)
    for _, logits_BC in _logits_in_chunks(head, h_BD):
        here_BK = logits_BC.topk(min(k, logits_BC.shape[1]), dim=-1).values
        top_BK = torch.cat([top_BK, here_BK], dim=-1).topk(k, dim=-1).values
        lse_B = _add_logsumexp(lse_B, logits_BC)
    return (lse_B - top_BK.double().mean(dim=-1)).float()


@torch.no_grad()
def best_token_of_one(head: Head, h_D: torch.Tensor, tokens_BK: torch.Tensor) -> BestToken:
    """Return the same for B sets of tokens in the distribution of one normed vector, shape (D,)."""
    tokens_BK = tokens_BK.to(h_D.device)
    logits_V = head.finish(head.logits(h_D[None]).float())[0]
    best_B, which_B = logits_V[tokens_BK].max(dim=-1)
    larger_B = head.d_vocab - torch.searchsorted(logits_V.sort().values, best_B, right=True)
    return BestToken(
        token=tokens_BK.gather(1, which_B[:, None])[:, 0],
        rank=larger_B,
        probability=(best_B - logits_V.logsumexp(dim=-1)).exp(),
    )


def token_logits(head: Head, h_BD: torch.Tensor, tokens_BK: torch.Tensor) -> torch.Tensor:
    """Return the logits, before `finish`, of each row's own tokens: (B, K) float32."""
    weight_BKD = head.weight[tokens_BK].float()
    logits_BK = torch.einsum("bd,bkd->bk", h_BD.float(), weight_BKD)
    if head.bias is not None:
        logits_BK = logits_BK + head.bias[tokens_BK].float()
    return logits_BK


@torch.no_grad()
def products_of_changes(head: Head, h_BPD: torch.Tensor, before_PD: torch.Tensor) -> torch.Tensor:
    """Return the inner products of the changes of next-token logits under P prompts.

    Args:
        head: final stage of the model.
        h_BPD: (B, P, D) normed vectors of B rows after each prompt.
        before_PD: (P, D) those without any change.

    Returns:
        (B, P, P) float64; exactly 0 where a vector is the one without change.
    """
    P = len(before_PD)
    at_once = max(1, GATHER_ROWS // P)
    parts = []
    for h in h_BPD.split(at_once):
        # In one product, so that equal vectors have equal logits.
        rows_BPD = torch.cat([h, before_PD[None].to(h)])
        rows_BPD = with_rows(rows_BPD, padded(len(rows_BPD), at_once + 1, h.device, P))
        product_BPP = torch.zeros(len(rows_BPD), P, P, dtype=torch.float64, device=rows_BPD.device)
        for _, logits_NC in _logits_in_chunks(head, rows_BPD.flatten(0, 1)):
            logits_BPC = logits_NC.view(len(rows_BPD), P, -1)
            change_BPC = logits_BPC - logits_BPC[len(h)]
            product_BPP += torch.bmm(change_BPC, change_BPC.transpose(1, 2)).double()
        parts.append(product_BPP[: len(h)])
    return torch.cat(parts)


@torch.no_grad()
def log_probability(head: Head, h_BD: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    """Return the log-probability (nats) of one token for each row's normed vector: (B,) float32."""
    return _in_tiles(lambda *tile: [_log_probability(head, *tile)], h_BD, token_B)[0]


def _log_probability(head: Head, h_BD: torch.Tensor, token_B: torch.Tensor) -> torch.Tensor:
    lse_B = _no_logsumexp(h_BD)
    own_B = lse_B.float()
    for start, logits_BC in _logits_in_chunks(head, h_BD):
        own_B = _own_in_chunk(own_B, token_B - start, logits_BC)
        lse_B = _add_logsumexp(lse_B, logits_BC)
    return (own_B - lse_B).float()


@torch.no_grad()
def log_probability_and_greedy(
    head: Head, h_BD: torch.Tensor, token_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `log_probability`, and whether the token is the most probable one, which greedy
    decoding would take: (B,) float32 and bool.
    """
    columns = _in_tiles(partial(_log_probability_and_greedy, head), h_BD, token_B)
    return columns[0], columns[1]


def _log_probability_and_greedy(
    head: Head, h_BD: torch.Tensor, token_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    lse_B = _no_logsumexp(h_BD)
    own_B = lse_B.float()
    best_B, best_token_B = torch.full_like(own_B, -torch.inf), torch.zeros_like(token_B)
    for start, logits_BC in _logits_in_chunks(head, h_BD):
        own_B = _own_in_chunk(own_B, token_B - start, logits_BC)
        top_B, at_B = logits_BC.max(dim=-1)
        best_token_B = torch.where(top_B > best_B, at_B + start, best_token_B)
        best_B = torch.maximum(best_B, top_B)
        lse_B = _add_logsumexp(lse_B, logits_BC)
    return (own_B - lse_B).float(), best_token_B == token_B


@torch.no_grad()
def log_probability_and_divergence(
    head: Head, h_BD: torch.Tensor, token_B: torch.Tensor, steered_BD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `log_probability`, and KL(steered || this), in nats, of each row's two next-token
    distributions: (B,) float32 each.
    """
    columns = _in_tiles(partial(_log_probability_and_divergence, head), h_BD, token_B, steered_BD)
    return columns[0], columns[1]


def _log_probability_and_divergence(
    head: Head, h_BD: torch.Tensor, token_B: torch.Tensor, steered_BD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    lse_B, steered_lse_B = _no_logsumexp(h_BD), _no_logsumexp(h_BD)
    own_B = lse_B.float()
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    chunks = zip(_logits_in_chunks(head, h_BD), _logits_in_chunks(head, steered_BD), strict=True)
    for (start, logits_BC), (_, steered_BC) in chunks:
        own_B = _own_in_chunk(own_B, token_B - start, logits_BC)
        top_B = steered_BC.amax(dim=-1)
        weight_BC = (steered_BC - top_B[:, None]).exp_()
        sum_B = weight_BC.sum(dim=-1)
        steered_lse_B = torch.logaddexp(steered_lse_B, top_B.double() + sum_B.double().log())
        apart_B = weight_BC.mul_(steered_BC.sub_(logits_BC)).sum(dim=-1)
        parts.append((top_B.double(), apart_B.double()))
        lse_B = _add_logsumexp(lse_B, logits_BC)
    mean_B = torch.stack([(top_B - steered_lse_B).exp() * sum_B for top_B, sum_B in parts]).sum(0)
    kl_B = (mean_B - steered_lse_B + lse_B).clamp_min(0)
    return (own_B - lse_B).float(), kl_B.float()


def _own_in_chunk(own_B: torch.Tensor, at_B: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
    """Return `own_B` with the logits of the tokens that are in this chunk, at `at_B`."""
    here_B = (at_B >= 0) & (at_B < logits_BC.shape[1])
    in_chunk_B = logits_BC.gather(1, at_B.clamp(0, logits_BC.shape[1] - 1)[:, None])[:, 0]
    return torch.where(here_B, in_chunk_B, own_B)
