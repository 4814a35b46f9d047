"""The tokens that a feature promotes, by the lens of the run: logit, Jacobian or effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from steerlens.config.prompts import effect_prompts
from steerlens.config.registry import BLOCK
from steerlens.config.schema import LENSES
from steerlens.engine.cached_rows import cached_rows
from steerlens.engine.intervention import decoder_rows
from steerlens.engine.jacobian import jacobian
from steerlens.engine.logit_lens import (
    Read,
    check_k,
    lens_logits,
    logit_lens,
    logit_lens_of_directions,
    top_tokens,
)
from steerlens.engine.memory import rows_that_fit
from steerlens.engine.padding import padded, with_rows
from steerlens.engine.steered import steered_prompt
from steerlens.engine.subject import Subject
from steerlens.storage.provenance import file_identity

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from steerlens.engine.run_context import RunContext

LOGIT, JACOBIAN, EFFECT = LENSES


def promoted_tokens(
    subject: Subject, features: torch.Tensor, k: int, ctx: RunContext
) -> torch.Tensor:
    """Return the k tokens that each of `features` promotes most, best first: (n, k) int64 token
    ids, on the CPU.

    Args:
        subject: model and SAE.
        features: (n,) feature ids.
        k: number of tokens per feature.
        ctx: the lens, memory, and what is computed once.

    Raises:
        SteerlensError: `k` is beyond the vocabulary, or the lens can't be made.
    """
    if ctx.lens.name == LOGIT:
        return logit_lens(subject, features, k, ctx.memory_budget)
    check_k(subject, k)
    memo_FK = ctx.cache.lens_tokens.get(subject.hook_name)
    if memo_FK is None or memo_FK.shape[1] < k:
        memo_FK = torch.full((subject.d_sae, k), -1, dtype=torch.int64)
    missing = features[memo_FK[features, 0] < 0].unique()
    if len(missing):
        memo_FK[missing] = _stored_tokens(subject, missing, memo_FK.shape[1], ctx)
    ctx.cache.lens_tokens[subject.hook_name] = memo_FK
    return memo_FK[features, :k]


def promoted_tokens_of_directions(
    subject: Subject, ids_N: torch.Tensor, directions_ND: torch.Tensor, k: int, ctx: RunContext
) -> torch.Tensor:
    """Return `promoted_tokens` of any vectors (N, D) in the place of the decoder rows of the
    features `ids_N`.
    """
    if ctx.lens.name == LOGIT:
        return logit_lens_of_directions(subject, directions_ND, k, ctx.memory_budget)
    check_k(subject, k)
    return _tokens(subject, ids_N, directions_ND, k, ctx)


def promoted_logits(
    subject: Subject, features: torch.Tensor, tokens_FK: torch.Tensor, ctx: RunContext
) -> torch.Tensor:
    """Return the logits of each feature's tokens in the lens, (n, k) float32; of the effect lens,
    which has none, those of the logit lens.
    """
    read = read_through(subject, ctx)
    return lens_logits(subject, features, tokens_FK, ctx.memory_budget, read)


def read_through(subject: Subject, ctx: RunContext) -> Read | None:
    """Return how the Jacobian lens reads vectors where the SAE writes; None for other lenses."""
    if ctx.lens.name != JACOBIAN:
        return None
    J_DW = jacobian(subject, ctx).mean(subject.site.write)
    return lambda rows_BW: (rows_BW.float() @ J_DW.to(rows_BW.device).T).to(rows_BW.dtype)


@torch.no_grad()
def promoted_slopes(
    subject: Subject, features: torch.Tensor, tokens_FK: torch.Tensor, ctx: RunContext
) -> torch.Tensor:
    """Return by how much the logit of each token grows with a feature's activation, through the
    Jacobian lens: `W_U g(J d_i)`, g the final norm without its division; (n, k) float32.
    """
    head, sae = subject.lm.head, subject.sae
    J_DW = jacobian(subject, ctx).mean(subject.site.write)
    rows_FW = decoder_rows(sae, features).float()
    linear_FD = head.without_division((rows_FW @ J_DW.to(rows_FW.device).T).to(head.device))
    slopes = [
        head.weight[tokens_K.to(head.device)].float() @ linear_D
        for linear_D, tokens_K in zip(linear_FD, tokens_FK, strict=True)
    ]
    return torch.stack(slopes).cpu()


def _stored_tokens(
    subject: Subject, features: torch.Tensor, k: int, ctx: RunContext
) -> torch.Tensor:
    """Return the tokens of different features, (n, k): those of the store, and what is missing
    there, a block at a time.
    """
    import pandas as pd
    import pyarrow as pa

    def compute(missing: pd.DataFrame) -> Iterator[pa.Table]:
        ids = torch.from_numpy(missing["feature"].to_numpy(copy=True))
        for ids_B in ids.split(BLOCK):
            tokens_BK = _tokens(subject, ids_B, None, k, ctx).int().numpy()
            yield pa.table({"feature": ids_B.numpy(), "tokens": [*tokens_BK]})

    key = {**subject.key, **lens_key(ctx), "promoted": k} if ctx.store else {}
    rows = pd.DataFrame({"feature": features.numpy()})
    table = cached_rows(ctx.store, key, rows, ["feature"], compute)
    tokens = table["tokens"].combine_chunks().flatten().to_numpy()
    return torch.from_numpy(tokens.astype("int64")).view(len(features), k)


def _tokens(
    subject: Subject,
    ids_n: torch.Tensor,
    directions_nD: torch.Tensor | None,
    k: int,
    ctx: RunContext,
) -> torch.Tensor:
    if ctx.lens.name == EFFECT:
        return effect_tokens(subject, ids_n, directions_nD, k, ctx)
    read = read_through(subject, ctx)
    if directions_nD is None:
        return top_tokens(subject, subject.sae.W_dec, ids_n, k, ctx.memory_budget, read)
    every_n = torch.arange(len(directions_nD))
    return top_tokens(subject, directions_nD, every_n, k, ctx.memory_budget, read)


def effect_tokens(
    subject: Subject,
    ids_n: torch.Tensor,
    directions_nD: torch.Tensor | None,
    k: int,
    ctx: RunContext,
) -> torch.Tensor:
    """Return the k tokens whose next-token probability rises most, on average over the effect
    lens's prompts, when each feature is amplified: (n, k) int64 token ids.
    """
    prompts = effect_prompts(ctx.lens.n_prompts)
    return rising_tokens(subject, ids_n, directions_nD, k, prompts, ctx.lens.factor, ctx)


def rising_tokens(
    subject: Subject,
    ids_n: torch.Tensor,
    directions_nD: torch.Tensor | None,
    k: int,
    texts: Sequence[str],
    factor: float,
    ctx: RunContext,
) -> torch.Tensor:
    """Return the k tokens whose next-token probability rises most, on average after `texts`, when
    each feature is amplified by `factor`: (n, k) int64 token ids.

    Raises:
        SteerlensError: `k` is beyond the vocabulary.
    """
    check_k(subject, k)
    head = subject.lm.head
    silent = replace(ctx, progress=lambda n_features: None)
    tokens_nk = torch.empty((len(ids_n), k), dtype=torch.int64)
    at_once = rows_that_fit(ctx.memory_budget // 2, 16 * head.d_vocab, 1024)
    prompts = [steered_prompt(subject, text, True, ctx) for text in texts]
    for start in range(0, len(ids_n), at_once):
        part = slice(start, start + at_once)
        rise_BV = torch.zeros((len(ids_n[part]), head.d_vocab), device=head.device)

        def add(rows: slice, h_BD: torch.Tensor, rise_BV: torch.Tensor = rise_BV) -> None:
            size = padded(len(h_BD), at_once, h_BD.device)
            logits_BV = head.finish(head.logits(with_rows(h_BD, size)).float())
            rise_BV[rows] += logits_BV.softmax(dim=-1)[: len(h_BD)]

        directions = None if directions_nD is None else directions_nD[part]
        for prompt in prompts:
            prompt.run(ids_n[part], factor, silent, 16 * head.d_vocab, add, directions)
            plain_V = head.finish(head.logits(prompt.h_D[None]).float())[0].softmax(dim=-1)
            rise_BV -= plain_V
        tokens_nk[part] = rise_BV.topk(k, dim=-1).indices.cpu()
    return tokens_nk


class Convergence(NamedTuple):
    """How far two halves of the sequences agree, means over features."""

    cosine: float
    """Between `J d_i` of both."""
    overlap: float
    """Share of the k tokens that both have."""


def convergence(subject: Subject, features: torch.Tensor, k: int, ctx: RunContext) -> Convergence:
    """Return how far the Jacobian lens's tokens depend on the sequences that it was fitted on."""
    halves = jacobian(subject, ctx)
    sae = subject.sae
    rows_nW = sae.W_dec[features.to(sae.W_dec.device)].float().cpu()
    reads, tokens = [], []
    for half in (0, 1):
        J_DW = halves.mean(subject.site.write, half)
        reads.append(rows_nW @ J_DW.T)
        tokens.append(
            top_tokens(
                subject, sae.W_dec, features, k, ctx.memory_budget,
                lambda rows, J_DW=J_DW: (rows.float() @ J_DW.to(rows.device).T).to(rows.dtype),
            )
        )  # fmt: skip
    shared_n = (tokens[0][:, :, None] == tokens[1][:, None]).any(dim=-1).float().mean(dim=-1)
    cosine_n = torch.nn.functional.cosine_similarity(*reads, dim=-1)
    return Convergence(float(cosine_n.mean()), float(shared_n.mean()))


def lens_key(ctx: RunContext) -> dict[str, Any]:
    """Return what the run's lens is, for the keys of numbers that depend on it; {} for the logit
    lens.
    """
    lens = ctx.lens
    if lens.name == LOGIT:
        return {}
    if lens.name == EFFECT:
        return {"lens": {"effect": effect_prompts(lens.n_prompts), "factor": lens.factor}}
    if lens.path:
        file = file_identity(Path(lens.path), ctx.store.root) if ctx.store else lens.path
        return {"lens": {"jacobian": file}}
    sequences = {"n": lens.n_prompts, "length": lens.context_length}
    return {"lens": {"jacobian": sequences, "corpus": ctx.corpus_key()}}
