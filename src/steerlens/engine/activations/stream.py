"""One streaming pass over a corpus, for several SAEs of one model at once.

The model runs as far as the last SAE's hook and no further, and activations are forgotten batch by
batch.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from steerlens.engine.activations import Activations
from steerlens.engine.activations.tally import Tally
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.subject import Subject
from steerlens.engine.subject.forward import hooks_on
from steerlens.engine.subject.site import never_fires
from steerlens.errors import SteerlensError

SORTED_AT_ONCE = 512
"""Pieces that are sorted by length before they are batched, so that little is padding."""

TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 32768
"""Tokens in a batch at most. On the CPU, small enough that the allocator uses memory again."""

KEEP_SECONDS = 60
"""How much of a pass a killed run may lose."""


@torch.no_grad()
def activations(
    subjects: Sequence[Subject],
    pieces: Iterable[np.ndarray],
    n_examples: int,
    memory_budget: int,
    progress: Callable[[int], None] = lambda n_tokens_read: None,
    begun: Sequence[Activations] = (),
    save: Callable[[list[Activations]], None] = lambda parts: None,
    details: bool = False,
) -> list[Activations]:
    """Run the model once over `pieces`, up to the last SAE's hook, and encodes every position.

    Args:
        subjects: SAEs of one model in the order of their layers, all with BOS or all without, and
            with the same number of positions that don't count.
        pieces: token ids, with BOS first exactly where the subjects have it.
        n_examples: top pieces kept for each feature.
        memory_budget: bytes for one batch's activations.
        progress: called with the number of tokens just read.
        begun: what `save` was given in an earlier pass over the same pieces; goes on after it.
        save: called now and then with what there is so far.
        details: also what is shown of the examples, and histograms.

    Raises:
        SteerlensError: for NaN activations, or where there are no pieces.
    """
    skip = subjects[0].n_uncounted
    befores = begun or [None] * len(subjects)
    tallies = [
        Tally(subject, n_examples, before, details)
        for subject, before in zip(subjects, befores, strict=True)
    ]
    read = list(begun[0].pieces) if begun else []
    n_tokens = begun[0].n_tokens if begun else 0
    progress(n_tokens)

    def results() -> list[Activations]:
        return [tally.result(read, n_tokens) for tally in tallies]

    def run(group: list[int], rows: slice, _full: int) -> None:
        vectors, mask_BL = residuals(subjects, [read[index] for index in group[rows]])
        mask_BL[:, :skip] = False
        # All of them before any is added, so that a batch that runs out of memory changes nothing.
        of_batches = [
            tally.of_batch(x_BLD, mask_BL) for tally, x_BLD in zip(tallies, vectors, strict=True)
        ]
        for tally, batch in zip(tallies, of_batches, strict=True):
            tally.add(batch, group[rows])

    at_most = TOKENS_ON_CPU if subjects[0].lm.device.type == "cpu" else TOKENS_ON_GPU
    tokens_at_once = rows_that_fit(memory_budget // 2, bytes_per_token(subjects), at_most)
    pieces = itertools.islice(pieces, len(read), None)
    last_stored = time.monotonic()
    while window := list(itertools.islice(pieces, SORTED_AT_ONCE)):
        new = range(len(read), len(read) + len(window))
        read += window
        for group in similar_length(new, read, tokens_at_once):
            for _ in batches(len(group), len(group), functools.partial(run, group)):
                pass
            size = sum(max(len(read[index]) - skip, 0) for index in group)
            n_tokens += size
            progress(size)
        if time.monotonic() - last_stored > KEEP_SECONDS:
            save(results())
            last_stored = time.monotonic()
    if not read:
        raise SteerlensError("the corpus has no text of at least two tokens.")
    return results()


def similar_length(
    indices: Iterable[int], pieces: Sequence[np.ndarray], tokens_at_once: int
) -> Iterator[list[int]]:
    """Yield `indices` in batches of about `tokens_at_once` tokens, longest pieces first."""
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
    """Return what each subject's SAE reads, (B, L, d_in), and which positions are real, (B, L).

    Padding stands after the text, where a causal model can't see it.
    """
    length = max(map(len, pieces))
    tokens = np.zeros((len(pieces), length), dtype=np.int64)
    mask = np.zeros((len(pieces), length), dtype=bool)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece)] = piece
        mask[row, : len(piece)] = True
    by_hook: dict[str, torch.Tensor] = {}
    last = subjects[-1].site.read

    def catch(x_BLD: torch.Tensor, hook: Any, name: str) -> None:
        by_hook[name] = x_BLD.flatten(2)
        if name == last:
            raise _HookReached

    names = dict.fromkeys(subject.site.read for subject in subjects)
    hooks: list[Any] = [(name, functools.partial(catch, name=name)) for name in names]
    lm = subjects[0].lm
    with contextlib.suppress(_HookReached), hooks_on(lm.bridge, hooks):
        lm.bridge(torch.from_numpy(tokens).to(lm.device))
    for name in names:
        if name not in by_hook:
            raise never_fires(name, lm)
    return [by_hook[subject.site.read] for subject in subjects], torch.from_numpy(mask)


def bytes_per_token(subjects: Sequence[Subject]) -> int:
    """Return the memory of one position in a batch: the widest SAE's activations three times
    over, 64 bytes for each that isn't zero (a tenth, generously), the vectors at every hook, and
    the widest layer of the model.
    """
    cfg = subjects[0].lm.bridge.cfg
    d_mlp = cfg.d_mlp or 4 * cfg.d_model
    widest = max(subject.d_sae for subject in subjects)
    return 4 * (5 * widest + 4 * d_mlp + (12 + len(subjects)) * cfg.d_model)
