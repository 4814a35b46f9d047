"""What a feature's card shows beside its scores: its logit lens, its texts, its neighbours.

Nothing is measured here that a score depends on; `report.html` shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlens.engine.cached_rows import cached_json

if TYPE_CHECKING:
    import torch

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject

CARDS_FILE = "cards.json"

SUPPRESSED = 10
"""Tokens that a feature suppresses most."""

NEIGHBOURS_OF_ONE = 10


@dataclass(frozen=True)
class CardRows:
    """Rows of the tables of cards, in columns without those of the subject."""

    cards: Mapping[str, Any]
    """Of `cards.parquet`."""
    examples: Mapping[str, Any]
    """Of `examples.parquet`."""
    neighbours: Mapping[str, Any]
    """Of `neighbours.parquet`."""


def card_rows(
    subject: Subject,
    features: Sequence[int],
    logit_lens_k: int,
    ctx: RunContext,
) -> CardRows:
    """Describe `features` of `subject` for their cards.

    Args:
        subject: model and SAE of one layer.
        features: feature ids, (n,).
        logit_lens_k: promoted tokens of each.
        ctx: memory for the logits and cosines of a few features, the examples that ship with the
            SAE if there are any, and the store of logits and neighbours.
    """
    ids = np.asarray(features, dtype=np.int64)
    names = {
        "model": subject.lm.name,
        "sae": subject.name,
        "hook_name": subject.hook_name,
        "layer": subject.layer,
    }
    key = {**subject.key, "cards": ids.tolist(), "logit_lens": logit_lens_k}
    computed = cached_json(
        ctx.store,
        key,
        CARDS_FILE,
        lambda: {
            "lens": _lens(subject, ids, logit_lens_k, ctx.memory_budget),
            "neighbours": _neighbours(subject, ids, ctx.memory_budget),
        },
    )
    cards = {**names, "feature": ids, **computed["lens"]}
    texts: dict[str, Any] = {"feature": [], "example": [], "tokens": [], "activations": []}
    if ctx.examples:
        cards |= _activations(subject, ids, Path(ctx.examples), texts)
    return CardRows(cards, {**names, **texts}, {**names, **computed["neighbours"]})


def _lens(subject: Subject, ids: np.ndarray, k: int, memory_budget: int) -> dict[str, Any]:
    """Give the logits of the promoted tokens, and the tokens with the lowest logits."""
    import torch

    head, tokenizer = subject.lm.head, subject.lm.tokenizer
    text = cache(lambda token: tokenizer.decode([token]))
    columns: dict[str, list[Any]] = {
        name: [] for name in ("logit_lens_logits", "suppressed_tokens", "suppressed_logits")
    }
    with torch.no_grad():
        for ids_B in _parts(ids, memory_budget, 8 * head.d_vocab):
            d_BD = subject.in_residual_stream(subject.sae.W_dec[ids_B.to(subject.sae.W_dec.device)])
            logits_BV = head.logits(head.norm(d_BD.to(head.device))).float()
            lowest = logits_BV.topk(min(SUPPRESSED, head.d_vocab), largest=False)
            columns["logit_lens_logits"] += logits_BV.topk(k).values.cpu().tolist()
            columns["suppressed_logits"] += lowest.values.cpu().tolist()
            columns["suppressed_tokens"] += [
                [text(token) for token in tokens] for tokens in lowest.indices.cpu().tolist()
            ]
    return columns


def _activations(
    subject: Subject, ids: np.ndarray, path: Path, texts: dict[str, list[Any]]
) -> dict[str, Any]:
    """How often and how strongly the features fire; adds the texts that they fire on to `texts`."""
    from steerlens.engine.examples import read_examples

    examples = read_examples(path, subject)
    tokenizer = subject.lm.tokenizer
    text = cache(lambda token: tokenizer.decode([token]))
    for feature in ids.tolist():
        for at, window in enumerate(examples.windows(feature)):
            texts["feature"].append(feature)
            texts["example"].append(at)
            texts["tokens"].append([text(token) for token in window.tokens.tolist()])
            texts["activations"].append(window.activations.tolist())
    return {
        "activation_frequency": examples.numbers("activation_frequency", ids),
        "activation_histogram": examples.lists("histogram", ids),
        "activation_histogram_range": examples.numbers("histogram_range", ids),
    }


def _neighbours(subject: Subject, ids: np.ndarray, memory_budget: int) -> dict[str, Any]:
    """Give the features whose decoder directions have the highest cosine with that of each."""
    import torch

    columns: dict[str, list[Any]] = {
        name: [] for name in ("feature", "rank", "neighbour", "cosine")
    }
    with torch.no_grad():
        matrix_FD = subject.sae.W_dec.float()
        unit_FD = matrix_FD / matrix_FD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        k = min(NEIGHBOURS_OF_ONE, subject.d_sae - 1)
        for ids_B in _parts(ids, memory_budget, 12 * subject.d_sae):
            rows_B = ids_B.to(unit_FD.device)
            cosine_BF = unit_FD[rows_B] @ unit_FD.T
            cosine_BF[torch.arange(len(rows_B)), rows_B] = -torch.inf  # not its own neighbour
            nearest = cosine_BF.topk(k)
            columns["feature"] += np.repeat(ids_B.numpy(), k).tolist()
            columns["rank"] += list(range(k)) * len(ids_B)
            columns["neighbour"] += nearest.indices.flatten().cpu().tolist()
            columns["cosine"] += nearest.values.flatten().cpu().tolist()
    return columns


def _parts(ids: np.ndarray, memory_budget: int, bytes_of_one: int) -> Iterator[torch.Tensor]:
    """Give the ids in parts whose rows fit into the budget."""
    import torch

    size = max(1, min(1024, memory_budget // (4 * bytes_of_one)))
    for start in range(0, len(ids), size):
        yield torch.from_numpy(ids[start : start + size])
