"""How well SAEs reconstruct ordinary text: explained variance, L0, dead features."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steerlens.engine.cached_rows import cached_values
from steerlens.engine.corpus_pass import alike, context_length, cut_corpus, tell_if_short

if TYPE_CHECKING:
    import torch

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject

FILE = "quality.json"
TOKENS_AT_ONCE = 2048
"""Few, so that the allocator uses memory again (see `activations.stream`)."""


def sae_rows(
    subjects: Sequence[Subject], n_tokens: int | None, ctx: RunContext
) -> list[Mapping[str, Any]]:
    """Return rows of `saes.parquet`; without `n_tokens` only what needs no text.

    Args:
        subjects: SAEs of one model, in the order of their layers.
        n_tokens: tokens of the run's corpus to reconstruct.
        ctx: corpus, store and progress.

    Raises:
        SteerlensError: the corpus has no text.
    """
    measured: list[dict[str, Any]] = [{}] * len(subjects)
    if n_tokens:
        measured = _measured(subjects, n_tokens, ctx)
        n_read = max(measures["tokens"] for measures in measured)
        tell_if_short(ctx, n_read, "quality.n_tokens", n_tokens)
    return [
        {
            "model": subject.lm.name,
            "sae": subject.name,
            "hook_name": subject.hook_name,
            "layer": subject.layer,
            "n_layers": subject.lm.n_layers,
            "architecture": subject.sae.cfg.architecture(),
            "d_in": subject.sae.cfg.d_in,
            "d_sae": subject.d_sae,
            "parameters": sum(parameter.numel() for parameter in subject.sae.parameters()),
            **measures,
        }
        for subject, measures in zip(subjects, measured, strict=True)
    ]


def _measured(subjects: Sequence[Subject], n_tokens: int, ctx: RunContext) -> list[dict[str, Any]]:
    """Yield `quality` of each, from the store where it is there."""
    corpus = ctx.corpus_key()
    keys = [{**subject.key, "quality": n_tokens, "corpus": corpus} for subject in subjects]
    index_of = {subject.hook_name: index for index, subject in enumerate(subjects)}

    def find(index: int) -> dict[str, Any] | None:
        return ctx.store.load_json(keys[index], FILE) if ctx.store else None

    def measure(missing: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for together in alike([subjects[index] for index in missing]):
            indices = [index_of[subject.hook_name] for subject in together]
            yield from zip(indices, quality(together, n_tokens, ctx), strict=True)

    def save(index: int, row: dict[str, Any]) -> None:
        if ctx.store:
            ctx.store.keep_json(keys[index], FILE, row)

    return [*cached_values(range(len(subjects)), find, measure, save).values()]


def quality(subjects: Sequence[Subject], n_tokens: int, ctx: RunContext) -> list[dict[str, Any]]:
    """Reconstruct the first `n_tokens` tokens of the corpus with SAELens' own encode and
    decode.

    BOS and positions that the SAEs weren't trained on count nowhere: at its first position, many a
    model's vectors are a hundred times as long as elsewhere, and all explained variance is of that
    one. The model runs once for all `subjects`.

    Returns:
        Of each `tokens`; `explained_variance`: 1 - sum |x - decode(a)|^2 / sum |x - mean x|^2, null
        for a transcoder, which reconstructs something else than x; `l0`: active features a token;
        `dead_share`: features that are active on none of these tokens.
    """
    import torch

    from steerlens.engine.activations.stream import residuals

    assert ctx.corpus is not None
    first = subjects[0]
    length = context_length(first, None, ctx)
    cut = iter(cut_corpus(first, ctx.corpus, length, n_tokens))
    sums = [_Sums(subject) for subject in subjects]
    layers = ", ".join(str(subject.layer) for subject in subjects)
    with torch.no_grad(), ctx.task(n_tokens, f"quality, layer {layers}", "tokens") as advance:
        while group := list(itertools.islice(cut, max(1, TOKENS_AT_ONCE // length))):
            vectors, mask_BL = residuals(subjects, group)
            mask_BL[:, : first.n_uncounted] = False
            for total, x_BLD in zip(sums, vectors, strict=True):
                total.add(x_BLD, mask_BL)
            advance(int(mask_BL.sum()))
    return [total.result() for total in sums]


class _Sums:
    """What the measures of one SAE are made of."""

    def __init__(self, subject: Subject) -> None:
        import torch

        from steerlens.engine.subject.site import is_transcoder

        self._sae = subject.sae
        self._is_transcoder = is_transcoder(subject.sae)
        self._fired_F = torch.zeros(subject.d_sae, dtype=torch.bool)
        self._sum_D = torch.zeros(subject.sae.cfg.d_in, dtype=torch.float64)
        self._squares, self._missed, self._active, self._tokens = 0.0, 0.0, 0, 0

    def add(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor) -> None:
        acts_BLF = self._sae.encode(x_BLD.to(self._sae.device))
        x_ND = x_BLD[mask_BL.to(x_BLD.device)].double().cpu()
        mask_BL = mask_BL.to(acts_BLF.device)
        if not self._is_transcoder:
            decoded_ND = self._sae.decode(acts_BLF)[mask_BL].double().cpu()
            self._missed += float((decoded_ND - x_ND).square().sum())
        self._sum_D += x_ND.sum(0)
        self._squares += float(x_ND.square().sum())
        fires_NF = acts_BLF[mask_BL] > 0
        self._active += int(fires_NF.sum())
        self._fired_F |= fires_NF.any(0).cpu()
        self._tokens += len(x_ND)

    def result(self) -> dict[str, Any]:
        variance = self._squares - float(self._sum_D.square().sum()) / self._tokens
        has_variance = variance > 0 and not self._is_transcoder
        return {
            "tokens": self._tokens,
            "explained_variance": 1 - self._missed / variance if has_variance else None,
            "l0": self._active / self._tokens,
            "dead_share": float((~self._fired_F).float().mean()),
        }
