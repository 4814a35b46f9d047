"""One streaming pass over a corpus: what every feature of an SAE fires on, and how strongly.

The model runs as far as the SAE's hook and no further. Of the activations only counts, sums and
the running top examples of each feature stay in memory: F x n numbers, however long the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from steerlens.errors import SteerlensError
from steerlens.memory import batches, rows_that_fit
from steerlens.subject import Subject

SORTED_AT_ONCE = 512
"""Pieces that are sorted by length before they are batched, so that little is padding."""


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


@torch.no_grad()
def activations(
    subject: Subject,
    pieces: Iterable[np.ndarray],
    n_examples: int,
    memory_budget: int,
    progress: Callable[[int], None],
) -> Activations:
    """Runs the model up to the SAE's hook over `pieces` and encodes every position.

    Args:
        subject: model and SAE.
        pieces: token ids, with BOS first exactly where the subject has it.
        n_examples: top pieces kept for each feature.
        memory_budget: bytes for one batch's activations.
        progress: called with the number of tokens just read.

    Raises:
        SteerlensError: for NaN activations.
    """
    d_sae = subject.d_sae
    device = subject.sae.W_dec.device
    skip = 1 if subject.bos is not None else 0
    read: list[np.ndarray] = []
    fired_F = torch.zeros(d_sae, dtype=torch.int64, device=device)
    sum_F = torch.zeros(d_sae, dtype=torch.float64, device=device)
    top = _TopExamples(n_examples)
    at_once = rows_that_fit(memory_budget // 2, _bytes_per_token(subject), 2**15)
    n_tokens = 0
    for group in _batched(pieces, read, at_once):

        def run_batch(rows: slice, group: list[int] = group) -> None:
            nonlocal n_tokens
            some = [read[index] for index in group[rows]]
            feature_acts, mask_BL = _encode(subject, some)
            feature_acts, mask_BL = feature_acts[:, skip:], mask_BL[:, skip:]
            if not mask_BL.all():
                feature_acts = feature_acts * mask_BL[..., None]
            sum_F.add_(feature_acts.sum(dim=(0, 1), dtype=torch.float32))
            fired_F.add_((feature_acts > 0).sum(dim=(0, 1)))
            value_BF, position_BF = feature_acts.float().max(dim=1)
            index_B = torch.tensor(group[rows], device=device)
            top.add(value_BF.clamp_(min=0), index_B, position_BF + skip)
            n_tokens += int(mask_BL.sum())

        for done in batches(len(group), len(group), run_batch):
            progress(sum(len(read[index]) - skip for index in group[:done]))
    if not torch.isfinite(sum_F).all():
        raise SteerlensError(
            f"layer {subject.layer} has NaN activations in {subject.lm.dtype}; use dtype=float32."
        )
    value_FN, piece_FN, position_FN = (part.cpu().numpy() for part in top.compact())
    return Activations(
        n_tokens=n_tokens,
        fired_F=fired_F.cpu().numpy(),
        sum_F=sum_F.cpu().numpy(),
        value_FN=value_FN,
        piece_FN=piece_FN,
        position_FN=position_FN,
        pieces=read,
    )


def _batched(
    pieces: Iterable[np.ndarray], read: list[np.ndarray], tokens_at_once: int
) -> Iterator[list[int]]:
    """Indices into `read`, which grows meanwhile: pieces of similar length together."""
    pieces = iter(pieces)
    while True:
        first = len(read)
        read.extend(piece for piece, _ in zip(pieces, range(SORTED_AT_ONCE), strict=False))
        if len(read) == first:
            return
        order = sorted(range(first, len(read)), key=lambda index: (-len(read[index]), index))
        while order:
            size = max(1, tokens_at_once // len(read[order[0]]))
            yield order[:size]
            order = order[size:]


def _encode(subject: Subject, pieces: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
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

    try:
        subject.lm.bridge.run_with_hooks(
            torch.from_numpy(tokens).to(subject.lm.device), fwd_hooks=[(subject.site.read, catch)]
        )
    except _HookReached:
        pass
    sae = subject.sae
    return sae.encode(seen[0].to(sae.device)), torch.from_numpy(mask).to(sae.device)


def _bytes_per_token(subject: Subject) -> int:
    """Memory of one position in a batch: activations three times over, and the widest layer."""
    cfg = subject.lm.bridge.cfg
    d_mlp = cfg.d_mlp or 4 * cfg.d_model
    return 4 * (3 * subject.d_sae + 4 * d_mlp + 12 * cfg.d_model)
