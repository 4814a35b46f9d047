"""The tokens that a feature stands for: top-k of unembed(LN(d_i)) (paper Section 2)."""

from __future__ import annotations

import torch

from steerlens.errors import SteerlensError
from steerlens.memory import batches, rows_that_fit
from steerlens.padding import padded, with_rows
from steerlens.subject import Subject


@torch.no_grad()
def logit_lens(
    subject: Subject, features: torch.Tensor, k: int = 20, memory_budget: int = 2 * 1024**3
) -> torch.Tensor:
    """Top-k logit-lens tokens of `features`, best first: (n, k) int64 token ids, on the CPU.

    Streamed: never F x V logits in memory. Answers are kept with the subject, because several
    scores of a run ask for the same tokens.

    Args:
        features: (n,) feature ids.
        k: number of tokens per feature.
        memory_budget: bytes for the logits of one chunk and what their top-k needs.
    """
    head = subject.lm.head
    if not 1 <= k <= head.d_vocab:
        raise SteerlensError(
            f"top_k={k} is out of range: {subject.lm.name} has {head.d_vocab} tokens."
        )
    known = subject.logit_lens_memo
    if known is None or known.shape[1] < k:
        known = torch.full((subject.d_sae, k), -1, dtype=torch.int64)
    missing = features[known[features, 0] < 0]
    per_row = head.d_vocab * (subject.sae.W_dec.element_size() + 12)

    def run(rows: slice, full: int) -> None:
        ids_B = missing[rows]
        padded_B = with_rows(ids_B, padded(len(ids_B), full, head.device))
        d_BD = subject.directions(padded_B).to(head.device)
        logits_BV = head.logits(head.norm(d_BD))[: len(ids_B)]
        known[ids_B] = logits_BV.float().topk(known.shape[1], dim=-1).indices.cpu()

    for _ in batches(len(missing), rows_that_fit(memory_budget, per_row, 1024), run):
        pass
    subject.logit_lens_memo = known
    return known[features, :k]
