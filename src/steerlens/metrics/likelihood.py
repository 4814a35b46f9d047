"""How probable texts are for a model, many at a time, without their logits in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from steerlens.memory import batches, rows_that_fit
from steerlens.ranks import log_probability
from steerlens.subject import LoadedModel

TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 32768
"""Tokens in a batch at most. On the CPU, small enough that the allocator uses memory again."""


@torch.no_grad()
def mean_negative_log_likelihood(
    lm: LoadedModel,
    texts: Sequence[Sequence[int]],
    memory_budget: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Mean negative log-probability (nats) of every text's tokens but the first.

    Args:
        lm: the model.
        texts: token ids, at least 2 each and at most the model's context.
        memory_budget: bytes for one batch.
        progress: called with the number of texts just read.
    """
    means = np.zeros(len(texts))
    at_most = TOKENS_ON_CPU if lm.device.type == "cpu" else TOKENS_ON_GPU
    longest = max(map(len, texts), default=0)
    tokens_at_once = rows_that_fit(memory_budget, _bytes_per_token(lm, longest), at_most)
    for group in _of_similar_length(texts, tokens_at_once):

        def run(rows: slice, group: list[int] = group) -> None:
            nll_B = _negative_log_likelihood(lm, [texts[index] for index in group[rows]])
            lengths = np.array([len(texts[index]) for index in group[rows]])
            means[group[rows]] = nll_B.cpu().numpy() / (lengths - 1)

        for done in batches(len(group), len(group), run):
            progress(done)
    return means.tolist()


def _of_similar_length(texts: Sequence[Sequence[int]], tokens_at_once: int) -> Iterator[list[int]]:
    """Indices of `texts` in batches of about `tokens_at_once` tokens, longest first."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    while order:
        size = max(1, tokens_at_once // len(texts[order[0]]))
        yield order[:size]
        order = order[size:]


def _negative_log_likelihood(lm: LoadedModel, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Negative log-probability of each text's tokens but the first: (B,) float64."""
    tokens_BL, mask_BL = _padded(texts, lm.device)
    h_BLD = _normed(lm, tokens_BL)
    mask_BL = mask_BL[:, 1:].to(h_BLD.device)
    rows_N, positions_N = mask_BL.nonzero(as_tuple=True)
    targets_N = tokens_BL.to(h_BLD.device)[rows_N, positions_N + 1]
    log_p_N = log_probability(lm.head, h_BLD[rows_N, positions_N], targets_N)
    nll_B = torch.zeros(len(texts), dtype=torch.float64, device=h_BLD.device)
    return nll_B.index_add_(0, rows_N, -log_p_N.double())


def _padded(
    texts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, L), padded after the text, where a causal model can't see it, and the mask."""
    shape = (len(texts), max(map(len, texts)))
    tokens_BL, mask_BL = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, ids in enumerate(texts):
        tokens_BL[row, : len(ids)] = ids
        mask_BL[row, : len(ids)] = True
    return torch.from_numpy(tokens_BL).to(device), torch.from_numpy(mask_BL).to(device)


def _normed(lm: LoadedModel, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Final normed vectors (B, L, D) of all positions."""
    seen: list[torch.Tensor] = []

    def catch(h_BLD: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(h_BLD)
        return h_BLD[:0]  # the unembedding is not the model's to do here

    lm.bridge.run_with_hooks(tokens_BL, fwd_hooks=[("unembed.hook_in", catch)], use_cache=False)
    return seen[0]


def _bytes_per_token(lm: LoadedModel, length: int) -> int:
    """Memory of one position in a batch of texts of `length` tokens, a generous estimate: the
    widest layer, attention scores, and some logits."""
    cfg = lm.bridge.cfg
    d_mlp = cfg.d_mlp or 4 * cfg.d_model
    vectors = lm.dtype.itemsize * (5 * d_mlp + 20 * cfg.d_model)
    return vectors + 12 * cfg.n_heads * length + 8 * 256
