"""Output score S_out: how much amplifying a feature makes its own logit-lens tokens likely.

Paper Eq. 9-10: after the edit, `P = (1 - r / |V|) * p`, with `r` the 0-based rank and `p` the
probability of the best-ranked of the feature's top-k logit-lens tokens.

A random direction in the place of a decoder row has an output score, too, and in late layers often
a high one. So every layer has a null distribution: the scores of random directions with the norms
of the layer's decoder rows, each toward its own logit-lens tokens. `output_score_p` says how often
a direction that knows nothing of the SAE scores at least as high as the feature. Where features are
said to be above chance, these p-values are corrected for their number (`analysis.summary`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.engine.cached_rows import cached_rows
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext, ScoreConfig

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from steerlens.engine.subject import Subject


@dataclass
class PromptConfig(ScoreConfig):
    """Settings of every score of one steered prompt toward some tokens."""

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
        """Return which of the run's seed and corpus the numbers depend on."""
        return ()


@dataclass
class OutputScoreConfig(PromptConfig):
    """Settings of the output score."""

    method: str = "output"
    null_directions: int = 499
    """Random directions of each layer whose scores are the null distribution; 0 = none."""

    FILLS: ClassVar[Sequence[str]] = (
        "output_score",
        "output_score_delta",
        "output_score_p",
        "output_rank",
        "output_probability",
    )

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if self.null_directions < 0:
            raise self.refusal("null_directions", "must be at least 0")

    def uses_lens(self) -> bool:
        """Return whether the numbers depend on the run's lens."""
        return True


Config = OutputScoreConfig


def score(
    subject: Subject, features: np.ndarray, config: OutputScoreConfig, ctx: RunContext
) -> Mapping[str, np.ndarray | list[str]]:
    """Score `features`, shape (n,).

    Returns:
        `output_score` (the published number), `output_score_delta` (minus the unsteered term, as
        in Eq. 10), `output_rank`, `output_probability` and `output_token` of the best token, and
        unless there are no null directions `output_score_p`.

    Raises:
        SteerlensError: for an empty prompt, a template that the model hasn't, a `top_k` beyond the
            vocabulary, or NaN scores.
    """
    import torch

    from steerlens.engine.lens import promoted_tokens

    ids_F = torch.tensor(np.asarray(features, dtype=np.int64))
    tokens_FK = promoted_tokens(subject, ids_F, config.top_k, ctx)
    columns = score_toward(subject, ids_F, tokens_FK, config, ctx)
    if config.null_directions:
        null_N = null_scores(subject, config, ctx)
        columns["output_score_p"] = p_values(np.asarray(columns["output_score"]), null_N)
    return columns


def score_toward(
    subject: Subject,
    ids_F: torch.Tensor,
    tokens_FK: torch.Tensor,
    config: PromptConfig,
    ctx: RunContext,
    directions_FD: torch.Tensor | None = None,
) -> dict[str, np.ndarray | list[str]]:
    """Return `score`, for any K tokens that each feature is to make likely.

    Args:
        subject: model and SAE.
        ids_F: (F,) feature ids.
        tokens_FK: (F, K) token ids.
        config: prompt, factor, and what becomes of the SAE's error.
        ctx: memory budget and progress.
        directions_FD: what stands in the place of each feature's decoder row; None = the row.
    """
    import torch

    from steerlens.engine.ranks import best_token_of_one, best_token_of_rows, bytes_per_row
    from steerlens.engine.steered import steered_prompt

    head = subject.lm.head
    prompt = steered_prompt(subject, config.prompt, config.keep_error, ctx, config.chat_template)
    rank_F = torch.empty(len(ids_F), dtype=torch.int64)
    probability_F = torch.empty(len(ids_F), dtype=torch.float32)
    token_F = torch.empty(len(ids_F), dtype=torch.int64)

    def best_token(rows: slice, h_BD: torch.Tensor) -> None:
        best = best_token_of_rows(head, h_BD, tokens_FK[rows])
        token_F[rows], rank_F[rows], probability_F[rows] = (column.cpu() for column in best)

    per_row = bytes_per_row(tokens_FK.shape[1])
    prompt.run(ids_F, config.factor, ctx, per_row, best_token, directions_FD)
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
    """Return `P = (1 - r / |V|) * p` (Eq. 9), in float64."""
    return (1 - rank.double() / d_vocab) * probability.double()


def null_scores(subject: Subject, config: OutputScoreConfig, ctx: RunContext) -> np.ndarray:
    """Yield, as (N,) float64, output scores of the layer's `config.null_directions` random
    directions.

    Computed once for a subject and settings: kept in the run, and in its store beside the scores.
    """
    import pandas as pd
    import pyarrow as pa

    from steerlens.engine.lens import lens_key

    settings = dataclasses.asdict(config)
    at = (subject.hook_name, json.dumps(settings))
    if at in ctx.cache.null_scores:
        return ctx.cache.null_scores[at]
    key = {**subject.key, **lens_key(ctx), "null of": settings}
    directions = pd.DataFrame({"direction": np.arange(config.null_directions)})

    def scores_of(_missing: pd.DataFrame) -> Iterator[pa.Table]:
        scores_N = _null_scores(subject, config, ctx)  # of all: they are drawn together
        yield pa.table({"direction": np.arange(len(scores_N)), "output_score": scores_N})

    table = cached_rows(ctx.store, key, directions, ["direction"], scores_of)
    ctx.cache.null_scores[at] = table["output_score"].to_numpy()
    return ctx.cache.null_scores[at]


def _null_scores(subject: Subject, config: OutputScoreConfig, ctx: RunContext) -> np.ndarray:
    from steerlens.engine.lens import promoted_tokens_of_directions

    ids_N, directions_ND = draw_directions(subject, config.null_directions)
    tokens_NK = promoted_tokens_of_directions(subject, ids_N, directions_ND, config.top_k, ctx)
    name = f"layer {subject.layer}: null"
    with ctx.task(config.null_directions, name, "directions") as advance:
        silent = dataclasses.replace(ctx, progress=advance)
        columns = score_toward(subject, ids_N, tokens_NK, config, silent, directions_ND)
    return np.asarray(columns["output_score"])


def draw_directions(subject: Subject, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the random directions with norms of decoder rows: (n,) feature ids, (n, D) directions.

    Each stands in the place of a feature, drawn with replacement, and has the norm of its row: a
    Gaussian direction, uniform on the sphere. Every one is drawn by itself, from its number and the
    layer, so that fewer are the first of more, and other seeds of a run have the same null.
    """
    import torch

    from steerlens.engine.intervention import decoder_rows

    generators = [np.random.default_rng([subject.layer, number]) for number in range(n)]
    ids_n = torch.tensor([int(generator.integers(subject.d_sae)) for generator in generators])
    norm_n = decoder_rows(subject.sae, ids_n).float().norm(dim=-1)
    width = subject.sae.W_dec.shape[1]
    gaussian_nD = torch.from_numpy(
        np.stack([generator.standard_normal(width) for generator in generators])
    )
    unit_nD = torch.nn.functional.normalize(gaussian_nD, dim=-1)
    directions_nD = unit_nD.to(norm_n) * norm_n[:, None]
    return ids_n, directions_nD.to(subject.sae.W_dec.dtype)


def p_values(scores_F: np.ndarray, null_N: np.ndarray) -> np.ndarray:
    """Return, as (F,), the share of null scores at least as high, each score itself counted among
    them.

    `(1 + number at least as high) / (1 + N)`, which is never 0 and holds its level exactly.
    """
    lower_F = np.searchsorted(np.sort(null_N), scores_F, side="left")
    return (1 + len(null_N) - lower_F) / (1 + len(null_N))
