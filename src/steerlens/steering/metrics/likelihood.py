"""How probable texts are for a model, many at a time, without their logits in memory.

Texts that go on from the same prompt share its work: the prompt runs once, and only what differs
runs in a row for each text, on the prompt's keys and values. How a text is cut, padded and batched
depends on the text and its prompt alone, so that its number doesn't depend on the others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steerlens.engine.generation import TextVectors
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.padding import ROWS, next_multiple, padded
from steerlens.engine.ranks import log_probability, log_probability_and_divergence
from steerlens.engine.subject import LoadedModel
from steerlens.engine.subject.forward import block_input, copied, empty_cache, final_vectors
from steerlens.engine.subject.head import Head
from steerlens.errors import SteerlensError

TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 8192
"""Tokens in a batch at most. On the CPU, small enough that the allocator uses memory again; on a
GPU, where every batch is that large, enough to keep it busy."""

LENGTHS = 4
"""Texts are padded to a multiple of so many tokens, and batched with those of the same length."""


@torch.no_grad()
def mean_negative_log_likelihood(
    lm: LoadedModel,
    texts: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    memory_budget: int,
    progress: Callable[[int], None] = lambda n_texts: None,
    answers_only: bool = False,
) -> list[float]:
    """Return the mean negative log-probability (nats) of every text's tokens but the first, or of
    its answer.

    Args:
        lm: the model.
        texts: token ids, at least 2 each and at most the model's context.
        prompts: token ids of what each text goes on from; what a text has in common with its prompt
            is run once for all that have the same.
        memory_budget: bytes for what is run at once.
        progress: called with the number of texts just read.
        answers_only: whether only the tokens after the prompt's count; each text has some.

    Raises:
        SteerlensError: logits overflow in the model's dtype.
    """
    return likelihood_and_divergence(
        lm, texts, prompts, memory_budget, progress, answers_only, [TextVectors()] * len(texts)
    )[0]


@torch.no_grad()
def likelihood_and_divergence(
    lm: LoadedModel,
    texts: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    memory_budget: int,
    progress: Callable[[int], None],
    answers_only: bool,
    made_of: Sequence[TextVectors],
    first_block: int = 0,
) -> tuple[list[float], list[float | None]]:
    """Return `mean_negative_log_likelihood`, and from the same logits the mean KL divergence (nats)
    of steered next-token distributions from this model's, on each text after its prompt.

    Args:
        lm: the model, unsteered.
        texts: as there; those with steered vectors begin with their prompt, token by token.
        prompts: as there.
        memory_budget: as there.
        progress: as there.
        answers_only: as there.
        made_of: what each text was made of, of at least as many tokens as there are after the
            prompt. Without vectors that they were drawn from, it has no divergence; with what
            entered a block, only that block and the later ones are run.
        first_block: the block that it entered.

    Raises:
        SteerlensError: logits overflow in the model's dtype.
    """
    means = np.zeros(len(texts))
    divergences: list[float | None] = [None] * len(texts)
    shared = [0] * len(texts)
    if _can_share(lm):
        shared = [_shared_length(ids, prompt) for ids, prompt in zip(texts, prompts, strict=True)]
    first = [len(prompt) if answers_only else 1 for prompt in prompts]
    # In 16 bits the same vectors from another batch are rounded otherwise, visibly.
    goes_on = lm.dtype == torch.float32 and not lm.rows_from_start
    entering = [made_of_text.entering_TD if goes_on else None for made_of_text in made_of]
    for begun, n_begun, going_on in _begun(lm, texts, shared, memory_budget, not answers_only):
        by_length = _of_same_length(lm, texts, n_begun, going_on)
        for length, later, group in _by_first_block(by_length, entering, prompts, n_begun):

            def run(
                rows: slice,
                full: int,
                begun: _Begun | None = begun,
                group: list[int] = group,
                length: int = length,
                later: bool = later,
            ) -> None:
                group_texts = [texts[index] for index in group[rows]]
                group_first = [first[index] for index in group[rows]]
                shape = (padded(len(group_texts), full, lm.device, length), length)
                steered = [
                    None if vectors_TD is None else vectors_TD[: len(texts[index]) - len(prompt)]
                    for index in group[rows]
                    for vectors_TD, prompt in [(made_of[index].drawn_TD, prompts[index])]
                ]
                from_block = None
                if later:
                    parts = [
                        entering_TD[: len(texts[index]) - len(prompts[index]) - 1]
                        for index in group[rows]
                        if (entering_TD := entering[index]) is not None
                    ]
                    from_block = (first_block, parts)
                nll_B, kl_of_row = _negative_log_likelihood(
                    lm, group_texts, group_first, begun, shape, steered, from_block
                )
                for row, kl in kl_of_row.items():
                    divergences[group[rows][row]] = kl
                n_counted = [
                    len(ids) - at for ids, at in zip(group_texts, group_first, strict=True)
                ]
                means[group[rows]] = nll_B.cpu().numpy() / n_counted

            size = _rows_at_once(lm, n_begun, length, memory_budget)
            for n_done in batches(len(group), size, run):
                progress(n_done)
    if not np.isfinite(means).all():
        raise SteerlensError(
            f"{lm.name} gives NaN or infinite log-probabilities in {lm.dtype}; use dtype=float32."
        )
    return means.tolist(), divergences


def _can_share(lm: LoadedModel) -> bool:
    """Return whether keys and values are all that the model remembers of its past."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layer_types = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in layer_types for layer in empty_cache(lm.bridge).layers)


def _shared_length(ids: Sequence[int], prompt: Sequence[int]) -> int:
    """Return how many first tokens a text has in common with its prompt's own, never all of the
    text.

    Not always the whole prompt: a tokenizer may merge its last characters with what follows.
    """
    most = min(len(prompt), len(ids) - 1)
    return next((at for at in range(most) if ids[at] != prompt[at]), most)


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
    """Negative log-probability of their tokens but the first, float64; 0 where they don't count."""

    def cache_of_rows(self, which_B: torch.Tensor, first_block: int = 0) -> Any:
        """Return keys and values in B rows from a block on, and in one before: a copy, because a
        forward appends to what it is given.
        """
        cache = copied(self.cache)
        for block, layer in enumerate(cache.layers):
            layer.reorder_cache(which_B if block >= first_block else which_B[:1])
        return cache


def _begun(
    lm: LoadedModel,
    texts: Sequence[Sequence[int]],
    shared: Sequence[int],
    memory_budget: int,
    counts: bool,
) -> Iterator[tuple[_Begun | None, int, list[int]]]:
    """Yield beginnings of `shared` tokens that have been run, their length, and indices of the
    texts that go on from them; with None and 0, the texts that share nothing.
    """
    going_on: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, length in enumerate(shared):
        going_on[length][tuple(texts[index][:length])].append(index)
    if alone := going_on.pop(0, None):
        yield None, 0, alone[()]
    for length, groups in going_on.items():
        beginnings = list(groups)
        finished: list[_Begun] = []

        def run(
            rows: slice, full: int, beginnings: Any = beginnings, finished: Any = finished
        ) -> None:
            finished.append(_begin(lm, beginnings[rows], full, counts))

        for _ in batches(len(beginnings), _rows_at_once(lm, 0, length, memory_budget), run):
            begun = finished.pop()
            yield begun, length, [index for ids in begun.number for index in groups[ids]]


def _begin(
    lm: LoadedModel, beginnings: Sequence[tuple[int, ...]], full: int, counts: bool
) -> _Begun:
    """Run beginnings of one length; with `counts`, their own tokens are predicted, too."""
    length = len(beginnings[0])
    cache = empty_cache(lm.bridge)
    # Few rows: a longer one costs less than more of them (see `padding`).
    longer = next_multiple(length, ROWS)
    windows = [getattr(layer, "sliding_window", None) or math.inf for layer in cache.layers]
    if longer > int(lm.bridge.cfg.n_ctx) or longer >= min(windows, default=math.inf):
        longer = length  # what slides out of a window can't be cut off again
    shape = (padded(len(beginnings), full, lm.device, longer), longer)
    tokens_PL, real_PL = _filled(beginnings, shape, lm.device)
    h_PLD = _normed(lm, tokens_PL, cache)[:, :length]
    if longer > length:
        cache.crop(length - longer)  # so many of the last
    nll_P = torch.zeros(len(h_PLD), dtype=torch.float64, device=h_PLD.device)
    if counts:
        nll_P = _sum(lm.head, h_PLD[:, :-1], tokens_PL[:, 1:length], real_PL[:, 1:length])
    return _Begun(
        number={ids: row for row, ids in enumerate(beginnings)},
        cache=cache,
        h_PD=h_PLD[:, -1],
        nll_P=nll_P,
    )


def _of_same_length(
    lm: LoadedModel, texts: Sequence[Sequence[int]], n_begun: int, indices: Iterable[int]
) -> dict[int, list[int]]:
    """Return `indices` by how many tokens are run after the first `n_begun`: all but the last,
    padded to a multiple of `LENGTHS` as far as the model's context goes. Longest first.
    """
    most = int(lm.bridge.cfg.n_ctx) - n_begun
    groups: dict[int, list[int]] = defaultdict(list)
    for index in indices:
        length = next_multiple(len(texts[index]) - n_begun - 1, LENGTHS)
        groups[min(length, most)].append(index)
    return dict(sorted(groups.items(), reverse=True))


def _by_first_block(
    by_length: Mapping[int, list[int]],
    entering: Sequence[torch.Tensor | None],
    prompts: Sequence[Sequence[int]],
    n_begun: int,
) -> Iterator[tuple[int, bool, list[int]]]:
    """Yield texts of a length that begin alike: whether a later block is their first, of which we
    know what enters it after the prompt, and their indices.
    """
    for length, indices in by_length.items():
        for later in (False, True):
            group = [
                index
                for index in indices
                if later == (entering[index] is not None and n_begun == len(prompts[index]) > 0)
            ]
            if group:
                yield length, later, group


def _rows_at_once(lm: LoadedModel, n_begun: int, length: int, memory_budget: int) -> int:
    """Return rows of `length` tokens in a batch: from half of the budget, because beginnings
    stay while the texts that go on from them are run.
    """
    tokens = TOKENS_ON_CPU if lm.device.type == "cpu" else TOKENS_ON_GPU
    per_row = max(1, length) * _bytes_per_token(lm, n_begun + length)
    return rows_that_fit(memory_budget // 2, per_row, tokens // max(1, length))


def _negative_log_likelihood(
    lm: LoadedModel,
    texts: Sequence[Sequence[int]],
    first: Sequence[int],
    begun: _Begun | None,
    shape: tuple[int, int],
    steered: Sequence[torch.Tensor | None],
    from_block: tuple[int, Sequence[torch.Tensor]] | None = None,
) -> tuple[torch.Tensor, dict[int, float]]:
    """Return the negative log-probability of each text's tokens from the one at `first` on, (B,)
    float64, and the mean divergence of the `steered` ones, by row.

    `shape` is that of the tokens that are run, padding included; `steered` has the vectors (T, D)
    that each text's last T tokens were drawn from, and `from_block` a block, and what the tokens of
    each text after the beginning, but the last, bring to it: where that is known, the blocks before
    run in one row, which is given up there.
    """
    n_rows, length = shape
    if begun is None:
        tokens_BL, real_BL = _filled(texts, (n_rows, length + 1), lm.device)
        for row, at in enumerate(first):
            real_BL[row, :at] = False
        h_BLD = _normed(lm, tokens_BL[:, :-1])
        ends = [len(ids) - 1 for ids in texts]
        return _read(lm.head, h_BLD, tokens_BL[:, 1:], real_BL[:, 1:], steered, ends)
    n_begun = len(next(iter(begun.number)))
    rest_BL, real_BL = _filled([ids[n_begun:] for ids in texts], (n_rows, length + 1), lm.device)
    for row, at in enumerate(first):
        real_BL[row, : max(0, at - n_begun)] = False
    which_B = torch.zeros(n_rows, dtype=torch.int64)
    which_B[: len(texts)] = torch.tensor([begun.number[tuple(ids[:n_begun])] for ids in texts])
    which_B = which_B.to(begun.h_PD.device)
    h_BLD = begun.h_PD[which_B, None]
    if length > 0:
        if from_block is None:
            h_rest = _normed(lm, rest_BL[:, :-1], begun.cache_of_rows(which_B))
        else:
            block, parts = from_block
            entering_BLD = begun.h_PD.new_zeros(n_rows, length, begun.h_PD.shape[1])
            for row, part_TD in enumerate(parts):
                entering_BLD[row, : len(part_TD)] = part_TD
            h_rest = final_vectors(
                lm.bridge,
                rest_BL[:1, :-1],
                [(block_input(block), lambda x_1LD, hook: entering_BLD.to(x_1LD))],
                begun.cache_of_rows(which_B, block),
            )
        h_BLD = torch.cat([h_BLD, h_rest], dim=1)
    ends = [len(ids) - n_begun for ids in texts]
    nll_B, kl_of_row = _read(lm.head, h_BLD, rest_BL, real_BL, steered, ends)
    return begun.nll_P[which_B][: len(texts)] + nll_B, kl_of_row


def _read(
    head: Head,
    h_BLD: torch.Tensor,
    targets_BL: torch.Tensor,
    real_BL: torch.Tensor,
    steered: Sequence[torch.Tensor | None],
    ends: Sequence[int],
) -> tuple[torch.Tensor, dict[int, float]]:
    """Return `_sum` of the first rows, one for each of `ends`, and the mean divergence of those
    that are `steered`, both from the same logits.

    The T vectors of a steered row are compared with the last T of `h_BLD` before its end.
    """
    steered_BL = torch.zeros(real_BL.shape, dtype=torch.bool)
    for row, (vectors_TD, end) in enumerate(zip(steered, ends, strict=True)):
        if vectors_TD is not None:
            steered_BL[row, end - len(vectors_TD) : end] = True
    steered_BL = steered_BL.to(h_BLD.device)
    nll_B = _sum(head, h_BLD, targets_BL, real_BL.to(h_BLD.device) & ~steered_BL)
    vectors = [vectors_TD.to(h_BLD) for vectors_TD in steered if vectors_TD is not None]
    if not vectors:
        return nll_B[: len(ends)], {}
    log_probability_N, kl_N = log_probability_and_divergence(
        head, h_BLD[steered_BL], targets_BL.to(h_BLD.device)[steered_BL], torch.cat(vectors)
    )
    nll_BL = torch.zeros(steered_BL.shape, dtype=torch.float64, device=h_BLD.device)
    nll_BL[steered_BL] = -log_probability_N.double()
    rows = [row for row, vectors_TD in enumerate(steered) if vectors_TD is not None]
    parts = kl_N.double().split([len(vectors_TD) for vectors_TD in vectors])
    kl_of_row = {row: float(kl_T.mean()) for row, kl_T in zip(rows, parts, strict=True)}
    return (nll_B + nll_BL.sum(dim=-1))[: len(ends)], kl_of_row


def _sum(
    head: Head, h_BLD: torch.Tensor, targets_BL: torch.Tensor, real_BL: torch.Tensor
) -> torch.Tensor:
    """Return the negative log-probabilities of targets, each given the vector before it, where
    there is one: their sum in each row, (B,) float64.
    """
    real_BL = real_BL.to(h_BLD.device)
    nll_BL = torch.zeros(real_BL.shape, dtype=torch.float64, device=h_BLD.device)
    if real_BL.any():
        targets_N = targets_BL.to(h_BLD.device)[real_BL]
        nll_BL[real_BL] = -log_probability(head, h_BLD[real_BL], targets_N).double()
    return nll_BL.sum(dim=-1)


def _filled(
    texts: Sequence[Sequence[int]], shape: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (B, L), zeros after a text, where a causal model can't see them, and in
    the rows after all texts; and where the texts are.
    """
    tokens_BL, real_BL = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, ids in enumerate(texts):
        tokens_BL[row, : len(ids)] = ids
        real_BL[row, : len(ids)] = True
    return torch.from_numpy(tokens_BL).to(device), torch.from_numpy(real_BL).to(device)


def _normed(lm: LoadedModel, tokens_BL: torch.Tensor, cache: Any = None) -> torch.Tensor:
    """Return the final normed vectors (B, L, D) of all positions, after those that `cache`
    remembers.
    """
    return final_vectors(lm.bridge, tokens_BL, cache=cache)


def _bytes_per_token(lm: LoadedModel, length: int) -> int:
    """Return the memory of one position in a batch of texts of `length` tokens, a generous
    estimate: keys and values, the widest layer, attention scores, and some logits.
    """
    cfg = lm.bridge.cfg
    keys_values = lm.kv_numbers * lm.n_layers
    vectors = 5 * (cfg.d_mlp or 4 * cfg.d_model) + 20 * cfg.d_model
    return lm.dtype.itemsize * (keys_values + vectors) + 12 * cfg.n_heads * length + 8 * 256
