"""How probable texts are for a model, many at a time, without their logits in memory.

Texts that go on from the same prompt share its work: the prompt runs once, or has been run where
the texts were generated, and only its last token and what differs run in a row for each text, on
the prompt's keys and values. How a text is cut, padded and batched depends on the text and its
prompt alone, so that its number doesn't depend on the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from steerlens.engine.generation import TextVectors
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.padding import next_multiple, padded
from steerlens.engine.prompts import LENGTHS as PROMPT_LENGTHS
from steerlens.engine.prompts import PromptStates, prompt_state
from steerlens.engine.ranks import log_probability, log_probability_and_divergence
from steerlens.engine.subject import LoadedModel
from steerlens.engine.subject.forward import (
    empty_cache,
    entering_block,
    final_vectors,
    left_padded,
)
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
    states: PromptStates | None = None,
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
            entered a block, only that block and the later ones are run, and with an unsteered
            text's, nothing.
        first_block: the block that it entered; of one after the last, what left the blocks.
        states: what prompts have left in the model; None = they are all run.

    Raises:
        SteerlensError: logits overflow in the model's dtype.
    """
    # In 16 bits the same vectors from another batch are rounded otherwise, visibly.
    goes_on = lm.dtype == torch.float32 and not lm.rows_from_start
    can_share = _can_share(lm)
    readings: list[_Reading] = []
    beginnings: dict[tuple[int, ...], int] = {}
    for ids, prompt, vectors in zip(texts, prompts, made_of, strict=True):
        n_shared = _shared_length(ids, prompt) if can_share else 0
        n_new = len(ids) - len(prompt)
        drawn_TD, entering_TD, plain_TD = (
            None if part_TD is None else part_TD[:n_new] for part_TD in vectors
        )
        goes_on_here = goes_on and 1 < n_shared == len(prompt)
        readings.append(
            _Reading(
                ids=ids,
                n_begun=max(0, n_shared - 1),
                first=max(len(prompt) if answers_only else 1, n_shared),
                drawn_TD=drawn_TD,
                entering_TD=entering_TD if goes_on_here else None,
                plain_TD=plain_TD if goes_on_here else None,
            )
        )
        if n_shared > 1 and not answers_only:
            beginnings.setdefault(tuple(ids[:n_shared]), len(texts) + len(beginnings))
    # What beginnings are for themselves, once for all texts.
    readings += [_Reading(ids, 0, 1) for ids in beginnings]
    nll = np.zeros(len(readings))
    divergences: list[float | None] = [None] * len(readings)
    states = {} if states is None else states
    for shape, group in _of_same_shape(readings, int(lm.bridge.cfg.n_ctx)).items():

        def run(rows: slice, full: int, shape: _Shape = shape, group: list[int] = group) -> None:
            n_rows = padded(len(group[rows]), full, lm.device, shape.length)
            nll_B, kl_of_row = _negative_log_likelihood(
                lm,
                [readings[index] for index in group[rows]],
                n_rows,
                shape,
                first_block,
                states,
                memory_budget // 8,
            )
            nll[group[rows]] = nll_B.cpu().numpy()
            for row, kl in kl_of_row.items():
                divergences[group[rows][row]] = kl

        n_done = 0
        for n_rows in batches(len(group), _rows_at_once(lm, shape, memory_budget), run):
            progress(sum(index < len(texts) for index in group[n_done : n_done + n_rows]))
            n_done += n_rows
    means = []
    for index, (ids, prompt) in enumerate(zip(texts, prompts, strict=True)):
        beginning = beginnings.get(tuple(ids[: readings[index].n_begun + 1]))
        total = nll[index] if beginning is None else nll[index] + nll[beginning]
        means.append(float(total) / (len(ids) - (len(prompt) if answers_only else 1)))
    if not np.isfinite(means).all():
        raise SteerlensError(
            f"{lm.name} gives NaN or infinite log-probabilities in {lm.dtype}; use dtype=float32."
        )
    return means, divergences[: len(texts)]


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
class _Reading:
    """A text that is read from somewhere on."""

    ids: Sequence[int]
    n_begun: int
    """How many of its first tokens aren't run in its own row: those that it has in common with its
    prompt, but the last of these, which predicts what is the text's."""
    first: int
    """Where the tokens begin that count."""
    drawn_TD: torch.Tensor | None = None
    """What its last T tokens were drawn from."""
    entering_TD: torch.Tensor | None = None
    """What the tokens that are run bring to a later block, where that is known."""
    plain_TD: torch.Tensor | None = None
    """What running them would give, where that is known."""


TOKENS, ENTERING, FINAL = "tokens", "entering", "final"
"""From where on texts are run: from their tokens; from the vectors that enter a later block, the
blocks before in one row, which is given up there; or not at all, from the vectors at the end."""


class _Shape(NamedTuple):
    """What readings have in common that share batches."""

    n_before: int
    """How long the beginnings are with their padding; 0 = there is none."""
    length: int
    """How many tokens are run after it, padding at the end included."""
    source: str
    """What is run: `TOKENS`, `ENTERING` or `FINAL`."""
    n_padding: int = 0
    """Of the beginnings, where the first blocks run in one row, whose positions and mask serve
    all."""


def _of_same_shape(readings: Sequence[_Reading], n_ctx: int) -> dict[_Shape, list[int]]:
    """Return indices of `readings` by their shape, the longest first. Padding goes as far as the
    model's context.
    """
    groups: dict[_Shape, list[int]] = defaultdict(list)
    for index, reading in enumerate(readings):
        length = next_multiple(len(reading.ids) - reading.n_begun - 1, LENGTHS)
        length = min(length, n_ctx - reading.n_begun)
        if reading.plain_TD is not None:
            groups[_Shape(0, length, FINAL)].append(index)
            continue
        n_before = reading.n_begun
        if n_before:
            # As where texts are generated, which has run them.
            n_padded = next_multiple(n_before + 1, PROMPT_LENGTHS) - 1
            n_before = n_padded if n_padded + length <= n_ctx else n_before
        if reading.entering_TD is not None:
            shape = _Shape(n_before, length, ENTERING, n_before - reading.n_begun)
        else:
            shape = _Shape(n_before, length, TOKENS)
        groups[shape].append(index)
    return dict(sorted(groups.items(), reverse=True))


def _rows_at_once(lm: LoadedModel, shape: _Shape, memory_budget: int) -> int:
    """Return rows in a batch: from half of the budget, because beginnings stay while the texts that
    go on from them are run.
    """
    tokens = TOKENS_ON_CPU if lm.device.type == "cpu" else TOKENS_ON_GPU
    length = max(1, shape.length)
    per_row = length * _bytes_per_token(lm, shape.n_before + length)
    return rows_that_fit(memory_budget // 2, per_row, tokens // length)


def _negative_log_likelihood(
    lm: LoadedModel,
    readings: Sequence[_Reading],
    n_rows: int,
    shape: _Shape,
    first_block: int,
    states: PromptStates,
    state_bytes: int,
) -> tuple[torch.Tensor, dict[int, float]]:
    """Return the negative log-probability of each reading's tokens that count, (B,) float64, and
    the mean divergence of those that were steered, by row.

    `first_block` is the one of which it is known what enters it.
    """
    parts = [reading.ids[reading.n_begun :] for reading in readings]
    tokens_BL, real_BL = _filled(parts, (n_rows, shape.length + 1), lm.device)
    for row, reading in enumerate(readings):
        real_BL[row, : reading.first - reading.n_begun] = False
    steered = [reading.drawn_TD for reading in readings]
    ends = [len(part) - 1 for part in parts]
    if shape.source == FINAL:
        plain_BLD = _filled_vectors([reading.plain_TD for reading in readings], n_rows, shape)
        return _read(lm.head, plain_BLD, tokens_BL[:, 1:], real_BL[:, 1:], steered, ends)
    is_later = shape.source == ENTERING
    tokens, cache = tokens_BL[:, :-1], None
    hooks: list[tuple[str, Any]] = []
    inputs: dict[str, Any] = {}
    if shape.n_before:
        index_of_beginning: dict[tuple[int, ...], int] = {}
        for reading in readings:
            index_of_beginning.setdefault(
                tuple(reading.ids[: reading.n_begun + 1]), len(index_of_beginning)
            )
        rows = [
            index_of_beginning[tuple(reading.ids[: reading.n_begun + 1])] for reading in readings
        ]
        beginning_B = torch.tensor(rows + [0] * (n_rows - len(rows)), device=lm.device)
        length = shape.n_before + 1
        cache = prompt_state(
            lm, [*index_of_beginning], length, shape.n_before, False, states, state_bytes
        ).cache
        n_padding_P = torch.tensor(
            [length - len(ids) for ids in index_of_beginning], device=lm.device
        )
        for block, layer in enumerate(cache.layers):
            in_one_row = is_later and block < first_block
            layer.reorder_cache(beginning_B[:1] if in_one_row else beginning_B)
        rows_B = beginning_B[:1] if is_later else beginning_B
        inputs = left_padded(n_padding_P[rows_B], shape.n_before, shape.length)
    if is_later:
        entering_BLD = _filled_vectors([reading.entering_TD for reading in readings], n_rows, shape)
        hooks = [(entering_block(first_block), lambda x_1LD, hook: entering_BLD.to(x_1LD))]
        tokens = tokens[:1]
    h_BLD = final_vectors(lm.bridge, tokens, hooks, cache, **inputs)
    return _read(lm.head, h_BLD, tokens_BL[:, 1:], real_BL[:, 1:], steered, ends)


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


def _filled_vectors(
    texts: Sequence[torch.Tensor | None], n_rows: int, shape: _Shape
) -> torch.Tensor:
    """Return the vectors (T, D) of texts, which all have some, as (B, L, D), zeros after them."""
    vectors = [vectors_TD for vectors_TD in texts if vectors_TD is not None]
    filled_BLD = vectors[0].new_zeros(n_rows, shape.length, vectors[0].shape[1])
    for row, vectors_TD in enumerate(vectors):
        filled_BLD[row, : len(vectors_TD)] = vectors_TD
    return filled_BLD


def _bytes_per_token(lm: LoadedModel, length: int) -> int:
    """Return the memory of one position in a batch of texts of `length` tokens, a generous
    estimate: keys and values, the widest layer, attention scores, and some logits.
    """
    cfg = lm.bridge.cfg
    keys_values = lm.kv_numbers * lm.n_layers
    vectors = 5 * (cfg.d_mlp or 4 * cfg.d_model) + 20 * cfg.d_model
    return lm.dtype.itemsize * (keys_values + vectors) + 12 * cfg.n_heads * length + 8 * 256
