"""How probable texts are for a model, many at a time, without their logits in memory.

Texts that go on from the same prompt share its work: the prompt runs once, and only what differs
runs in a row for each text, on the prompt's keys and values.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steerlens.engine.ranks import log_probability
from steerlens.memory import batches, rows_that_fit
from steerlens.subject import LoadedModel
from steerlens.subject.head import Head

TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 32768
"""Tokens in a batch at most. On the CPU, small enough that the allocator uses memory again."""


@torch.no_grad()
def mean_negative_log_likelihood(
    lm: LoadedModel,
    texts: Sequence[Sequence[int]],
    prompts: Sequence[Hashable],
    memory_budget: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Mean negative log-probability (nats) of every text's tokens but the first.

    Args:
        lm: the model.
        texts: token ids, at least 2 each and at most the model's context.
        prompts: what each text begins with; texts with the same prompt share its work.
        memory_budget: bytes for what is run at once.
        progress: called with the number of texts just read.
    """
    means = np.zeros(len(texts))
    at_most = TOKENS_ON_CPU if lm.device.type == "cpu" else TOKENS_ON_GPU
    longest = max(map(len, texts), default=0)
    # Half for the beginnings, which stay, and half for the texts that go on from them.
    tokens_at_once = rows_that_fit(memory_budget // 2, _bytes_per_token(lm, longest), at_most)
    shared = _shared_lengths(texts, prompts) if _can_share(lm) else [0] * len(texts)
    for begun, going_on in _begun(lm, texts, shared, tokens_at_once):
        for group in _of_similar_length(texts, going_on, tokens_at_once):

            def run(rows: slice, begun: _Begun | None = begun, group: list[int] = group) -> None:
                here = [texts[index] for index in group[rows]]
                nll_B = _negative_log_likelihood(lm, here, begun)
                means[group[rows]] = nll_B.cpu().numpy() / [len(ids) - 1 for ids in here]

            for done in batches(len(group), len(group), run):
                progress(done)
    return means.tolist()


def _can_share(lm: LoadedModel) -> bool:
    """Whether keys and values are all that the model remembers of its past."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    known = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in known for layer in _new_cache(lm).layers)


def _new_cache(lm: LoadedModel) -> Any:
    from transformers import DynamicCache

    hf_model: Any = lm.bridge.original_model
    return DynamicCache(config=hf_model.config)


def _shared_lengths(texts: Sequence[Sequence[int]], prompts: Sequence[Hashable]) -> list[int]:
    """How many first tokens each text has in common with all texts of its prompt: (n,).

    Never all of a text, and 0 for the only text of a prompt. Of tokens, because a tokenizer may
    merge a prompt's last characters with what follows.
    """
    of_prompt: dict[Hashable, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        of_prompt[prompt].append(index)
    lengths = [0] * len(texts)
    for group in of_prompt.values():
        if len(group) > 1:
            columns = zip(*(texts[index] for index in group), strict=False)
            same = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
            shortest = min(len(texts[index]) for index in group)
            length = min(len(list(same)), shortest - 1)
            for index in group:
                lengths[index] = length
    return lengths


@dataclass(frozen=True)
class _Begun:
    """P beginnings of one length, run once."""

    number: Mapping[tuple[int, ...], int]
    """The row of each."""
    cache: Any
    """Their keys and values."""
    h_PD: torch.Tensor
    """Final normed vectors of their last positions."""
    nll_P: torch.Tensor
    """Negative log-probability of their tokens but the first, float64."""

    def cache_of_rows(self, which_B: torch.Tensor) -> Any:
        """Keys and values in B rows: a copy, because a forward appends to what it is given."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.reorder_cache(which_B)
        return cache


def _begun(
    lm: LoadedModel, texts: Sequence[Sequence[int]], shared: Sequence[int], tokens_at_once: int
) -> Iterator[tuple[_Begun | None, list[int]]]:
    """Beginnings of `shared` tokens that have been run, and indices of the texts that go on from
    them; first, with None, the texts that share nothing."""
    going_on: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, length in enumerate(shared):
        going_on[length][tuple(texts[index][:length])].append(index)
    if alone := going_on.pop(0, None):
        yield None, alone[()]
    for length, groups in going_on.items():
        beginnings = list(groups)
        finished: list[_Begun] = []

        def run(rows: slice, beginnings: Any = beginnings, finished: Any = finished) -> None:
            finished.append(_begin(lm, beginnings[rows]))

        for _ in batches(len(beginnings), max(1, tokens_at_once // length), run):
            begun = finished.pop()
            yield begun, [index for ids in begun.number for index in groups[ids]]


def _begin(lm: LoadedModel, beginnings: Sequence[tuple[int, ...]]) -> _Begun:
    tokens_PL, all_PL = _padded(beginnings, lm.device)
    cache = _new_cache(lm)
    h_PLD = _normed(lm, tokens_PL, cache)
    return _Begun(
        number={ids: row for row, ids in enumerate(beginnings)},
        cache=cache,
        h_PD=h_PLD[:, -1],
        nll_P=_sum(lm.head, h_PLD[:, :-1], tokens_PL[:, 1:], all_PL[:, 1:]),
    )


def _of_similar_length(
    texts: Sequence[Sequence[int]], indices: Iterable[int], tokens_at_once: int
) -> Iterator[list[int]]:
    """`indices` in batches of about `tokens_at_once` tokens, longest texts first."""
    order = sorted(indices, key=lambda index: -len(texts[index]))
    while order:
        size = max(1, tokens_at_once // len(texts[order[0]]))
        yield order[:size]
        order = order[size:]


def _negative_log_likelihood(
    lm: LoadedModel, texts: Sequence[Sequence[int]], begun: _Begun | None
) -> torch.Tensor:
    """Negative log-probability of each text's tokens but the first: (B,) float64."""
    if begun is None:
        tokens_BL, mask_BL = _padded(texts, lm.device)
        return _sum(lm.head, _normed(lm, tokens_BL[:, :-1]), tokens_BL[:, 1:], mask_BL[:, 1:])
    length = len(next(iter(begun.number)))
    rest_BL, mask_BL = _padded([ids[length:] for ids in texts], lm.device)
    which_B = torch.tensor([begun.number[tuple(ids[:length])] for ids in texts])
    which_B = which_B.to(begun.h_PD.device)
    h_BLD = begun.h_PD[which_B, None]
    if rest_BL.shape[1] > 1:
        h_rest = _normed(lm, rest_BL[:, :-1], begun.cache_of_rows(which_B))
        h_BLD = torch.cat([h_BLD, h_rest], dim=1)
    return begun.nll_P[which_B] + _sum(lm.head, h_BLD, rest_BL, mask_BL)


def _sum(
    head: Head, h_BLD: torch.Tensor, targets_BL: torch.Tensor, mask_BL: torch.Tensor
) -> torch.Tensor:
    """Negative log-probabilities of targets, each given the vector before it, where there is one:
    their sum in each row, (B,) float64."""
    mask_BL = mask_BL.to(h_BLD.device)
    targets_N = targets_BL.to(h_BLD.device)[mask_BL]
    nll_BL = torch.zeros(mask_BL.shape, dtype=torch.float64, device=h_BLD.device)
    nll_BL[mask_BL] = -log_probability(head, h_BLD[mask_BL], targets_N).double()
    return nll_BL.sum(dim=-1)


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


def _normed(lm: LoadedModel, tokens_BL: torch.Tensor, cache: Any = None) -> torch.Tensor:
    """Final normed vectors (B, L, D) of all positions, after those that `cache` remembers."""
    seen: list[torch.Tensor] = []

    def catch(h_BLD: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(h_BLD)
        return h_BLD[:0]  # the unembedding is not the model's to do here

    lm.bridge.run_with_hooks(
        tokens_BL,
        fwd_hooks=[("unembed.hook_in", catch)],
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return seen[0]


def _bytes_per_token(lm: LoadedModel, length: int) -> int:
    """Memory of one position in a batch of texts of `length` tokens, a generous estimate: keys and
    values, the widest layer, attention scores, and some logits."""
    cfg = lm.bridge.cfg
    n_kv = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    keys_values = 2 * n_kv * cfg.d_head * lm.n_layers
    vectors = 5 * (cfg.d_mlp or 4 * cfg.d_model) + 20 * cfg.d_model
    return lm.dtype.itemsize * (keys_values + vectors) + 12 * cfg.n_heads * length + 8 * 256
