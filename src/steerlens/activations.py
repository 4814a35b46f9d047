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
from safetensors.numpy import load_file, save

from steerlens.errors import SteerlensError
from steerlens.files import atomic_write
from steerlens.memory import batches, rows_that_fit
from steerlens.subject import Subject

SORTED_AT_ONCE = 512
"""Pieces that are sorted by length before they are batched, so that little is padding."""

ARRAYS = ("fired_F", "sum_F", "value_FN", "piece_FN", "position_FN")

KEEP_SECONDS = 60
"""How much of a pass a killed run may lose."""


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
    """float32: largest activation in each of the feature's top pieces, falling; 0 = no piece."""
    piece_FN: np.ndarray
    """int32: index into `pieces`."""
    position_FN: np.ndarray
    """int32: where in the piece that activation is."""
    pieces: list[np.ndarray]
    """Token ids of every piece that was read, in their order."""

    @property
    def max_F(self) -> np.ndarray:
        return self.value_FN[:, 0]

    def token_FN(self, features: np.ndarray) -> np.ndarray:
        """The token on which each example peaks, -1 where there is no example."""
        length = np.array([len(piece) for piece in self.pieces])
        start = np.concatenate([[0], length.cumsum()[:-1]])
        flat = np.concatenate(self.pieces)
        at_FN = start[self.piece_FN[features]] + self.position_FN[features]
        return np.where(self.value_FN[features] > 0, flat[at_FN], -1)


def write_activations(path: Path, found: Activations) -> None:
    """Writes the result of a pass, atomically, as safetensors."""
    arrays = {name: getattr(found, name) for name in ARRAYS}
    arrays["tokens"] = np.concatenate(found.pieces)
    arrays["lengths"] = np.array([len(piece) for piece in found.pieces])
    arrays["n_tokens"] = np.array([found.n_tokens])
    with atomic_write(path) as file:
        file.write(save(arrays))


def read_activations(path: Path) -> Activations | None:
    """What `write_activations` has written, or None if it isn't there."""
    if not path.is_file():
        return None
    arrays = load_file(path)
    return Activations(
        n_tokens=int(arrays["n_tokens"][0]),
        pieces=np.split(arrays["tokens"], arrays["lengths"].cumsum()[:-1]),
        **{name: arrays[name] for name in ARRAYS},
    )


class _TopExamples:
    """The pieces with the largest activation of each feature; earlier pieces win ties."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.new: list[tuple[torch.Tensor, ...]] = []
        self.rows = 0

    def add(self, value_BF: torch.Tensor, piece_B: torch.Tensor, position_BF: torch.Tensor) -> None:
        piece_BF = piece_B[:, None].expand_as(value_BF)
        self.new.append((value_BF.T, piece_BF.T.int(), position_BF.T.int()))
        self.rows += len(value_BF)
        if self.rows >= 4 * self.n:
            self.compact()

    def compact(self) -> tuple[torch.Tensor, ...]:
        merged = [torch.cat(parts, dim=1) for parts in zip(*self.new, strict=True)]
        # Two stable sorts: by value, and among equals by piece.
        for key, falling in ((1, False), (0, True)):
            order = merged[key].argsort(dim=1, descending=falling, stable=True)
            merged = [part.gather(1, order) for part in merged]
        self.new = [tuple(part[:, : self.n].contiguous() for part in merged)]
        self.rows = self.new[0][0].shape[1]
        return self.new[0]


class _HookReached(Exception):
    pass


class _Tally:
    """The running result of a pass."""

    def __init__(self, subject: Subject, n_examples: int, begun: Activations | None) -> None:
        self.subject = subject
        self.device = subject.sae.W_dec.device
        self.skip = 0 if subject.bos is None else 1
        self.top = _TopExamples(n_examples)
        self.pieces: list[np.ndarray] = []
        self.n_tokens = 0
        self.fired_F = torch.zeros(subject.d_sae, dtype=torch.int64, device=self.device)
        self.sum_F = torch.zeros(subject.d_sae, dtype=torch.float64, device=self.device)
        if begun is not None:
            self.pieces, self.n_tokens = list(begun.pieces), begun.n_tokens
            self.fired_F += torch.from_numpy(begun.fired_F).to(self.device)
            self.sum_F += torch.from_numpy(begun.sum_F).to(self.device)
            parts = (begun.value_FN, begun.piece_FN, begun.position_FN)
            self.top.new = [tuple(torch.from_numpy(part).to(self.device) for part in parts)]

    def add(self, group: list[int], rows: slice) -> None:
        """Runs some of the pieces that `group` has the indices of, all at once."""
        indices = group[rows]
        feature_acts, mask_BL = encode_pieces(self.subject, [self.pieces[i] for i in indices])
        feature_acts, mask_BL = feature_acts[:, self.skip :].relu_(), mask_BL[:, self.skip :]
        if not mask_BL.all():
            feature_acts *= mask_BL[..., None]
        value_BF, position_BF = feature_acts.max(dim=1)
        fired_F = torch.count_nonzero(feature_acts, dim=(0, 1))
        sum_F = feature_acts.sum(dim=(0, 1), dtype=torch.float32)
        # Only now, so that a batch that runs out of memory has changed nothing.
        self.top.add(
            value_BF.clamp(min=0),
            torch.tensor(indices, device=self.device),
            position_BF + self.skip,
        )
        self.fired_F += fired_F
        self.sum_F += sum_F
        self.n_tokens += int(mask_BL.sum())

    def result(self) -> Activations:
        if not torch.isfinite(self.sum_F).all():
            raise SteerlensError(
                f"layer {self.subject.layer} has NaN activations in {self.subject.lm.dtype}; use "
                "dtype=float32."
            )
        value_FN, piece_FN, position_FN = (part.cpu().numpy() for part in self.top.compact())
        return Activations(
            n_tokens=self.n_tokens,
            fired_F=self.fired_F.cpu().numpy(),
            sum_F=self.sum_F.cpu().numpy(),
            value_FN=value_FN,
            piece_FN=piece_FN,
            position_FN=position_FN,
            pieces=list(self.pieces),
        )


@torch.no_grad()
def activations(
    subject: Subject,
    pieces: Iterable[np.ndarray],
    n_examples: int,
    memory_budget: int,
    progress: Callable[[int], None],
    begun: Activations | None = None,
    keep: Callable[[Activations], None] = lambda part: None,
) -> Activations:
    """Runs the model up to the SAE's hook over `pieces` and encodes every position.

    Args:
        subject: model and SAE.
        pieces: token ids, with BOS first exactly where the subject has it.
        n_examples: top pieces kept for each feature.
        memory_budget: bytes for one batch's activations.
        progress: called with the number of tokens just read.
        begun: what `keep` was given in an earlier pass over the same pieces; goes on after it.
        keep: called now and then with what there is so far.

    Raises:
        SteerlensError: for NaN activations.
    """
    tally = _Tally(subject, n_examples, begun)
    progress(tally.n_tokens)
    tokens_at_once = rows_that_fit(memory_budget // 2, _bytes_per_token(subject), 2**15)
    pieces = itertools.islice(pieces, len(tally.pieces), None)
    kept = time.monotonic()
    while window := list(itertools.islice(pieces, SORTED_AT_ONCE)):
        new = range(len(tally.pieces), len(tally.pieces) + len(window))
        tally.pieces += window
        for group in _of_similar_length(new, tally.pieces, tokens_at_once):
            before = tally.n_tokens
            for _ in batches(len(group), len(group), functools.partial(tally.add, group)):
                pass
            progress(tally.n_tokens - before)
        if time.monotonic() - kept > KEEP_SECONDS:
            keep(tally.result())
            kept = time.monotonic()
    return tally.result()


def _of_similar_length(
    indices: Iterable[int], pieces: Sequence[np.ndarray], tokens_at_once: int
) -> Iterator[list[int]]:
    """`indices` in batches of about `tokens_at_once` tokens, longest pieces first."""
    order = sorted(indices, key=lambda index: (-len(pieces[index]), index))
    while order:
        size = max(1, tokens_at_once // len(pieces[order[0]]))
        yield order[:size]
        order = order[size:]


def encode_pieces(subject: Subject, pieces: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature activations (B, L, F) of padded pieces, and which positions are real (B, L).

    Padding stands after the text, where a causal model can't see it.
    """
    length = max(map(len, pieces))
    tokens = np.zeros((len(pieces), length), dtype=np.int64)
    mask = np.zeros((len(pieces), length), dtype=bool)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece)] = piece
        mask[row, : len(piece)] = True
    seen: list[torch.Tensor] = []

    def catch(x_BLD: torch.Tensor, hook: Any) -> None:
        seen.append(x_BLD.flatten(2))
        raise _HookReached

    with contextlib.suppress(_HookReached):
        subject.lm.bridge.run_with_hooks(
            torch.from_numpy(tokens).to(subject.lm.device), fwd_hooks=[(subject.site.read, catch)]
        )
    sae = subject.sae
    return sae.encode(seen[0].to(sae.device)), torch.from_numpy(mask).to(sae.device)


def _bytes_per_token(subject: Subject) -> int:
    """Memory of one position in a batch: activations three times over, and the widest layer."""
    cfg = subject.lm.bridge.cfg
    d_mlp = cfg.d_mlp or 4 * cfg.d_model
    return 4 * (3 * subject.d_sae + 4 * d_mlp + 12 * cfg.d_model)
