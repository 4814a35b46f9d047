"""One streaming pass over a corpus: what every feature of an SAE fires on, and how strongly.

The model runs as far as the SAE's hook and no further. Of the activations only counts, sums and
the running top examples of each feature stay in memory: F x n numbers, however long the corpus.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from steerlens.errors import SteerlensError
from steerlens.memory import batches, rows_that_fit
from steerlens.subject import Subject
from steerlens.subject.site import never_fires

SORTED_AT_ONCE = 512
"""Pieces that are sorted by length before they are batched, so that little is padding."""

ARRAYS = ("fired_F", "sum_F", "value_FN", "piece_FN", "position_FN")

TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 32768
"""Tokens in a batch at most. On the CPU, small enough that the allocator uses memory again."""

KEEP_SECONDS = 60
"""How much of a pass a killed run may lose."""

COMPACTED_AT_ONCE = 4096
"""Features whose examples are sorted at a time."""

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Largest activation of each piece and its position, (B, F); times fired and sum, (F,)."""


@dataclass(frozen=True)
class Activations:
    """What the pass leaves; F features, N examples. A feature fires where its activation is > 0.

    BOS counts nowhere: every feature may do anything there.
    """

    n_tokens: int
    fired_F: np.ndarray
    """int64: on how many tokens each feature fires."""
    sum_F: np.ndarray
    """float64: sum of the activations of each feature."""
    value_FN: np.ndarray
    """float32: largest activation in each of the feature's top pieces, falling (to four digits,
    then by piece); 0 = no piece."""
    piece_FN: np.ndarray
    """int32: index into `pieces`."""
    position_FN: np.ndarray
    """int32: where in the piece that activation is."""
    pieces: list[np.ndarray]
    """Token ids of every piece that was read, in their order."""

    @property
    def max_F(self) -> np.ndarray:
        return self.value_FN.max(axis=1)

    def token_FN(self, features: np.ndarray) -> np.ndarray:
        """The token on which each example peaks, -1 where there is no example."""
        length = np.array([len(piece) for piece in self.pieces])
        start = np.concatenate([[0], length.cumsum()[:-1]])
        flat = np.concatenate(self.pieces)
        at_FN = start[self.piece_FN[features]] + self.position_FN[features]
        return np.where(self.value_FN[features] > 0, flat[at_FN], -1)


def activations_bytes(found: Activations) -> bytes:
    """The result of a pass as safetensors."""
    arrays = {name: getattr(found, name) for name in ARRAYS}
    arrays["tokens"] = np.concatenate(found.pieces)
    arrays["lengths"] = np.array([len(piece) for piece in found.pieces])
    arrays["n_tokens"] = np.array([found.n_tokens])
    return save(arrays)


def read_activations(path: Path) -> Activations | None:
    """The result in a file of `activations_bytes`, or None if it isn't there or isn't whole."""
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError):
        return None
    return Activations(
        n_tokens=int(arrays["n_tokens"][0]),
        pieces=np.split(arrays["tokens"], arrays["lengths"].cumsum()[:-1]),
        **{name: arrays[name] for name in ARRAYS},
    )


class _TopExamples:
    """The pieces with the largest activation of each feature; earlier pieces win ties.

    Activations that agree to about four digits are ties: texts that begin alike have the same
    activation up to rounding, which depends on the batch.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.parts: list[Triple] = []
        """What has come since, and first the best of what came before; each (F, some)."""

    def add(self, value_BF: torch.Tensor, piece_B: torch.Tensor, position_BF: torch.Tensor) -> None:
        piece_FB = piece_B.int().expand(value_BF.shape[1], -1)
        self.parts.append((value_BF.T.float(), piece_FB, position_BF.T.int()))
        if sum(part[0].shape[1] for part in self.parts) >= 3 * self.n:
            self.compact()

    def compact(self) -> Triple:
        """The best so far, falling: value, piece and position, each (F, at most n)."""
        kept: list[Triple] = []
        for features in torch.arange(len(self.parts[0][0])).split(COMPACTED_AT_ONCE):
            rows = slice(int(features[0]), int(features[-1]) + 1)
            found = [torch.cat([part[i][rows] for part in self.parts], dim=1) for i in range(3)]
            order = _order(found[0], found[1])[:, : self.n]
            value, piece, position = (tensor.gather(1, order) for tensor in found)
            kept.append((value, piece, position))
        self.parts = [tuple(torch.cat(column) for column in zip(*kept, strict=True))]  # type: ignore[list-item]
        return self.parts[0]


def _order(value: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """Places of each row's values, none negative, from the largest on; then by piece."""
    # Floats that are not negative sort as their bits do; the last 11 of 23 digits are cut off.
    digits = (value.view(torch.int32).long() + 2**10) >> 11
    return ((digits << 31) - piece).argsort(dim=1, descending=True)


class _Tally:
    """The running result of one subject."""

    def __init__(self, subject: Subject, n_examples: int, begun: Activations | None) -> None:
        self.subject = subject
        self.device = subject.sae.W_dec.device
        self.top = _TopExamples(n_examples)
        self.fired_F = torch.zeros(subject.d_sae, dtype=torch.int64, device=self.device)
        self.sum_F = torch.zeros(subject.d_sae, dtype=torch.float64, device=self.device)
        if begun is not None:
            arrays = [torch.from_numpy(getattr(begun, name)).to(self.device) for name in ARRAYS]
            self.fired_F, self.sum_F = arrays[0].clone(), arrays[1].clone()
            self.top.parts = [(arrays[2], arrays[3], arrays[4])]

    def of_batch(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor) -> Batch:
        """What a batch has to say; nothing is added yet.

        Few activations are not zero, so they are gathered first: reductions over all of them
        would cost several times as much.
        """
        acts = self.subject.sae.encode(x_BLD.to(self.device)).flatten()
        (B, L), F = mask_BL.shape, self.subject.d_sae
        at = acts.nonzero()[:, 0]
        value = acts[at].float()
        if not torch.isfinite(value).all():
            raise SteerlensError(
                f"layer {self.subject.layer} has NaN activations in {self.subject.lm.dtype}; use "
                "dtype=float32."
            )
        fires = (value > 0) & mask_BL.to(self.device).flatten()[at // F]
        at, value = at[fires], value[fires]
        token, feature = at // F, at % F
        piece, position = token // L, token % L
        cell = piece * F + feature
        zeros = torch.zeros(B * F, device=self.device)
        value_BF = zeros.scatter_reduce(0, cell, value, "amax")
        largest = value == value_BF[cell]
        position_BF = torch.full_like(zeros, L, dtype=torch.int64)
        position_BF.scatter_reduce_(0, cell[largest], position[largest], "amin")
        position_BF[value_BF == 0] = 0
        fired_F = torch.bincount(feature, minlength=F)
        sum_F = torch.bincount(feature, weights=value.double(), minlength=F)
        return value_BF.view(B, F), position_BF.view(B, F), fired_F, sum_F

    def add(self, batch: Batch, pieces: Sequence[int]) -> None:
        value_BF, position_BF, fired_F, sum_F = batch
        self.top.add(value_BF, torch.tensor(pieces, device=self.device), position_BF)
        self.fired_F += fired_F
        self.sum_F += sum_F

    def result(self, pieces: list[np.ndarray], n_tokens: int) -> Activations:
        arrays = (self.fired_F, self.sum_F, *self.top.compact())
        named = {
            name: array.cpu().numpy().copy() for name, array in zip(ARRAYS, arrays, strict=True)
        }
        return Activations(n_tokens=n_tokens, pieces=list(pieces), **named)


@torch.no_grad()
def activations(
    subjects: Sequence[Subject],
    pieces: Iterable[np.ndarray],
    n_examples: int,
    memory_budget: int,
    progress: Callable[[int], None] = lambda done: None,
    begun: Sequence[Activations] = (),
    keep: Callable[[list[Activations]], None] = lambda parts: None,
) -> list[Activations]:
    """Runs the model once over `pieces`, up to the last SAE's hook, and encodes every position.

    Args:
        subjects: SAEs of one model in the order of their layers, all with BOS or all without.
        pieces: token ids, with BOS first exactly where the subjects have it.
        n_examples: top pieces kept for each feature.
        memory_budget: bytes for one batch's activations.
        progress: called with the number of tokens just read.
        begun: what `keep` was given in an earlier pass over the same pieces; goes on after it.
        keep: called now and then with what there is so far.

    Raises:
        SteerlensError: for NaN activations.
    """
    skip = 0 if subjects[0].bos is None else 1
    befores = begun or [None] * len(subjects)
    tallies = [
        _Tally(subject, n_examples, before)
        for subject, before in zip(subjects, befores, strict=True)
    ]
    read = list(begun[0].pieces) if begun else []
    n_tokens = begun[0].n_tokens if begun else 0
    progress(n_tokens)

    def results() -> list[Activations]:
        return [tally.result(read, n_tokens) for tally in tallies]

    def run(group: list[int], rows: slice) -> None:
        vectors, mask_BL = residuals(subjects, [read[index] for index in group[rows]])
        mask_BL[:, :skip] = False
        # All of them before any is added, so that a batch that runs out of memory changes nothing.
        found = [
            tally.of_batch(x_BLD, mask_BL) for tally, x_BLD in zip(tallies, vectors, strict=True)
        ]
        for tally, batch in zip(tallies, found, strict=True):
            tally.add(batch, group[rows])

    at_most = TOKENS_ON_CPU if subjects[0].lm.device.type == "cpu" else TOKENS_ON_GPU
    tokens_at_once = rows_that_fit(memory_budget // 2, _bytes_per_token(subjects), at_most)
    pieces = itertools.islice(pieces, len(read), None)
    kept = time.monotonic()
    while window := list(itertools.islice(pieces, SORTED_AT_ONCE)):
        new = range(len(read), len(read) + len(window))
        read += window
        for group in _of_similar_length(new, read, tokens_at_once):
            for _ in batches(len(group), len(group), functools.partial(run, group)):
                pass
            size = sum(len(read[index]) - skip for index in group)
            n_tokens += size
            progress(size)
        if time.monotonic() - kept > KEEP_SECONDS:
            keep(results())
            kept = time.monotonic()
    return results()


def _of_similar_length(
    indices: Iterable[int], pieces: Sequence[np.ndarray], tokens_at_once: int
) -> Iterator[list[int]]:
    """`indices` in batches of about `tokens_at_once` tokens, longest pieces first."""
    order = sorted(indices, key=lambda index: (-len(pieces[index]), index))
    while order:
        size = max(1, tokens_at_once // len(pieces[order[0]]))
        yield order[:size]
        order = order[size:]


class _HookReached(Exception):
    pass


@torch.no_grad()
def residuals(
    subjects: Sequence[Subject], pieces: Sequence[np.ndarray]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each subject's SAE reads, (B, L, d_in), and which positions are real, (B, L).

    Padding stands after the text, where a causal model can't see it.
    """
    length = max(map(len, pieces))
    tokens = np.zeros((len(pieces), length), dtype=np.int64)
    mask = np.zeros((len(pieces), length), dtype=bool)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece)] = piece
        mask[row, : len(piece)] = True
    seen: dict[str, torch.Tensor] = {}
    last = subjects[-1].site.read

    def catch(x_BLD: torch.Tensor, hook: Any, name: str) -> None:
        seen[name] = x_BLD.flatten(2)
        if name == last:
            raise _HookReached

    names = dict.fromkeys(subject.site.read for subject in subjects)
    hooks: list[Any] = [(name, functools.partial(catch, name=name)) for name in names]
    lm = subjects[0].lm
    with contextlib.suppress(_HookReached):
        lm.bridge.run_with_hooks(torch.from_numpy(tokens).to(lm.device), fwd_hooks=hooks)
    for name in names:
        if name not in seen:
            raise never_fires(name, lm)
    return [seen[subject.site.read] for subject in subjects], torch.from_numpy(mask)


def _bytes_per_token(subjects: Sequence[Subject]) -> int:
    """Memory of one position in a batch: the widest SAE's activations three times over, 64 bytes
    for each that isn't zero (a tenth, generously), the vectors at every hook, and the widest layer
    of the model."""
    cfg = subjects[0].lm.bridge.cfg
    d_mlp = cfg.d_mlp or 4 * cfg.d_model
    widest = max(subject.d_sae for subject in subjects)
    return 4 * (5 * widest + 4 * d_mlp + (12 + len(subjects)) * cfg.d_model)
