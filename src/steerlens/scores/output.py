"""Output score S_out: how much amplifying a feature makes its own logit-lens tokens likely.

Paper Eq. 9-10: after the edit, `P = (1 - r / |V|) * p`, with `r` the 0-based rank and `p` the
probability of the best-ranked of the feature's top-k logit-lens tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steerlens.errors import SteerlensError
from steerlens.scores import ScoreConfig, ScoreRun

if TYPE_CHECKING:
    import torch

    from steerlens.subject import Subject


@dataclass
class Config(ScoreConfig):
    """Settings of the output score."""

    method: str = "output"
    prompt: str = "From my experience,"
    """Neutral prompt. The authors' code has this one, the paper "In my experience,"."""
    factor: float = 10.0
    """Steering factor s: the feature's activation grows by s times the largest activation."""
    top_k: int = 20
    """Number of logit-lens tokens that stand for the feature."""
    keep_error: bool = True
    """Keep the SAE's reconstruction error (the authors' code) or drop it (the paper's Eq. 6)."""
    chat_template: bool = False
    """Put the prompt into the model's chat template, as the user's turn."""

    def uses(self) -> Sequence[str]:
        return ()


def score(
    subject: Subject, features: np.ndarray, config: Config, run: ScoreRun
) -> Mapping[str, np.ndarray | list[str]]:
    """Scores `features`, shape (n,).

    Returns:
        `output_score` (the published number), `output_score_delta` (minus the unsteered term, as
        in Eq. 10), `output_rank`, `output_probability` and `output_token` of the best token.

    Raises:
        SteerlensError: for an empty prompt, a template that the model hasn't, a `top_k` beyond the
            vocabulary, or NaN scores.
    """
    import torch

    from steerlens.logit_lens import logit_lens

    ids_F = torch.as_tensor(np.asarray(features, dtype=np.int64))
    tokens_FK = logit_lens(subject, ids_F, config.top_k, run.memory_budget)
    return score_toward(subject, ids_F, tokens_FK, config, run)


def score_toward(
    subject: Subject, ids_F: torch.Tensor, tokens_FK: torch.Tensor, config: Config, run: ScoreRun
) -> Mapping[str, np.ndarray | list[str]]:
    """`score`, for any K tokens that each feature is to make likely."""
    import torch

    from steerlens.engine.ranks import best_token_of_one, best_token_of_rows, bytes_per_row
    from steerlens.engine.steered import steered_prompt

    head = subject.lm.head
    prompt = steered_prompt(subject, config.prompt, config.keep_error, run, config.chat_template)
    rank_F = torch.empty(len(ids_F), dtype=torch.int64)
    probability_F = torch.empty(len(ids_F), dtype=torch.float32)
    token_F = torch.empty(len(ids_F), dtype=torch.int64)

    def best_token(rows: slice, h_BD: torch.Tensor) -> None:
        best = best_token_of_rows(head, h_BD, tokens_FK[rows])
        token_F[rows], rank_F[rows], probability_F[rows] = (column.cpu() for column in best)

    prompt.run(ids_F, config.factor, run, bytes_per_row(tokens_FK.shape[1]), best_token)
    before = best_token_of_one(head, prompt.h_D, tokens_FK)
    score_F = rank_weighted(rank_F, probability_F, head.d_vocab)
    unsteered_F = rank_weighted(before.rank.cpu(), before.probability.cpu(), head.d_vocab)
    if not torch.isfinite(score_F).all():
        raise SteerlensError(
            f"layer {subject.layer} gives NaN scores in {subject.lm.dtype}; use dtype=float32."
        )
    return {
        "output_score": score_F.numpy(),
        "output_score_delta": (score_F - unsteered_F).numpy(),
        "output_rank": rank_F.numpy(),
        "output_probability": probability_F.double().numpy(),
        "output_token": subject.lm.tokenizer.batch_decode(token_F[:, None].tolist()),
    }


def rank_weighted(rank: torch.Tensor, probability: torch.Tensor, d_vocab: int) -> torch.Tensor:
    """`P = (1 - r / |V|) * p` (Eq. 9), in float64."""
    return (1 - rank.double() / d_vocab) * probability.double()
