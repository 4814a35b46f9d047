"""The tokens that a feature stands for: top-k of unembed(LN(d_i)) (paper Section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.padding import padded, with_rows
from steerlens.engine.ranks import token_logits
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.storage.store import Store

Read = Callable[[torch.Tensor], torch.Tensor]
"""Vectors (B, W) where an SAE writes as vectors (B, D) before the final norm."""


@torch.no_grad()
def logit_lens(
    subject: Subject, features: torch.Tensor, k: int = 20, memory_budget: int = 2 * 1024**3
) -> torch.Tensor:
    """Return the top-k logit-lens tokens of `features`, best first: (n, k) int64 token ids, on the
    CPU.

    Answers are kept with the subject, because several scores of a run ask for the same tokens.

    Args:
        subject: model and SAE.
        features: (n,) feature ids.
        k: number of tokens per feature.
        memory_budget: bytes for the logits of one chunk and what their top-k needs.

    Raises:
        SteerlensError: `k` is beyond the vocabulary.
    """
    check_k(subject, k)
    memo_FK = subject.logit_lens_memo
    if memo_FK is None or memo_FK.shape[1] < k:
        memo_FK = torch.full((subject.d_sae, k), -1, dtype=torch.int64)
    missing = features[memo_FK[features, 0] < 0]
    memo_FK[missing] = top_tokens(
        subject, subject.sae.W_dec, missing, memo_FK.shape[1], memory_budget
    )
    subject.logit_lens_memo = memo_FK
    return memo_FK[features, :k]


@contextmanager
def kept_logit_lens(subject: Subject, k: int, store: Store | None) -> Iterator[None]:
    """Answer `logit_lens` inside from `store` as far as it can, and keep there what is new.

    Args:
        subject: model and SAE.
        k: the most tokens that are asked for inside, so that none is asked for twice.
        store: where finished work is kept; None = nowhere.
    """
    import pyarrow as pa

    logit_lens(subject, torch.empty(0, dtype=torch.int64), k)  # a memo of this width
    memo_FK = subject.logit_lens_memo
    if store is None or memo_FK is None:
        yield
        return
    key = {**subject.key, "logit_lens": memo_FK.shape[1]}
    stored = store.read(key)
    stored_F = torch.zeros(subject.d_sae, dtype=torch.bool)
    if stored is not None:
        ids = torch.from_numpy(stored["feature"].to_numpy().copy())
        tokens = stored["tokens"].combine_chunks().flatten().to_numpy()
        memo_FK[ids] = torch.from_numpy(tokens.astype("int64")).view(len(ids), -1)
        stored_F[ids] = True
    yield
    memo_FK = subject.logit_lens_memo
    if memo_FK is None or memo_FK.shape[1] != key["logit_lens"]:
        return
    new = ((memo_FK[:, 0] >= 0) & ~stored_F).nonzero()[:, 0]
    if len(new):
        tokens_nk = [*memo_FK[new].int().numpy()]
        store.add(key, pa.table({"feature": new.numpy(), "tokens": tokens_nk}))


@torch.no_grad()
def logit_lens_of_directions(
    subject: Subject, directions_ND: torch.Tensor, k: int, memory_budget: int = 2 * 1024**3
) -> torch.Tensor:
    """Return `logit_lens` of any vectors (N, D) in the place of decoder rows: (N, k) int64 token
    ids.
    """
    check_k(subject, k)
    every_N = torch.arange(len(directions_ND))
    return top_tokens(subject, directions_ND, every_N, k, memory_budget)


@torch.no_grad()
def lens_logits(
    subject: Subject,
    features: torch.Tensor,
    tokens_FK: torch.Tensor,
    memory_budget: int = 2 * 1024**3,
    read: Read | None = None,
) -> torch.Tensor:
    """Return the logits of each feature's tokens in unembed(LN(d_i)): (n, k) float32, on the CPU.

    Without what a model does to its logits after the unembedding (a soft cap, a scale), as the
    tokens are chosen.

    Args:
        subject: model and SAE.
        features: (n,) feature ids.
        tokens_FK: (n, k) token ids of each.
        memory_budget: bytes for the unembedding's rows of these tokens.
        read: as of `top_tokens`.
    """
    read = read or subject.in_residual_stream
    head = subject.lm.head
    logits_FK = torch.empty(tokens_FK.shape, dtype=torch.float32)
    per_row = 12 * tokens_FK.shape[1] * head.weight.shape[1]

    def run(rows: slice, full: int) -> None:
        ids_B = with_rows(features[rows], padded(len(features[rows]), full, head.device))
        tokens_BK = with_rows(tokens_FK[rows], len(ids_B)).to(head.device)
        d_BD = read(subject.sae.W_dec[ids_B.to(subject.sae.W_dec.device)])
        logits_BK = token_logits(head, head.norm(d_BD.to(head.device)), tokens_BK)
        logits_FK[rows] = logits_BK[: len(features[rows])].cpu()

    for _ in batches(len(features), rows_that_fit(memory_budget, per_row, 1024), run):
        pass
    return logits_FK


def check_k(subject: Subject, k: int) -> None:
    """Refuse more tokens than the model has."""
    if not 1 <= k <= subject.lm.head.d_vocab:
        raise SteerlensError(
            f"top_k={k} is out of range: {subject.lm.name} has {subject.lm.head.d_vocab} tokens."
        )


@torch.no_grad()
def top_tokens(
    subject: Subject,
    matrix_ND: torch.Tensor,
    ids_n: torch.Tensor,
    k: int,
    memory_budget: int,
    read: Read | None = None,
) -> torch.Tensor:
    """Return, as (n, k), the tokens of the rows `ids_n` of a matrix, never with n x V logits in
    memory.

    Args:
        subject: model and SAE.
        matrix_ND: vectors where the SAE writes.
        ids_n: which of them.
        k: number of tokens for each.
        memory_budget: bytes for the logits of one chunk and what their top-k needs.
        read: what the vectors are in the residual stream before the final norm; None = themselves.
    """
    read = read or subject.in_residual_stream
    head = subject.lm.head
    tokens_nk = torch.empty((len(ids_n), k), dtype=torch.int64)
    per_row = head.d_vocab * (matrix_ND.element_size() + 12)

    def run(rows: slice, full: int) -> None:
        ids_B = ids_n[rows].to(matrix_ND.device)
        padded_B = with_rows(ids_B, padded(len(ids_B), full, head.device))
        d_BD = read(matrix_ND[padded_B]).to(head.device)
        logits_BV = head.logits(head.norm(d_BD))[: len(ids_B)]
        tokens_nk[rows] = logits_BV.float().topk(k, dim=-1).indices.cpu()

    for _ in batches(len(ids_n), rows_that_fit(memory_budget, per_row, 1024), run):
        pass
    return tokens_nk
