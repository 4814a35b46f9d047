"""A corpus as tokens: documents cut into pieces that a model reads one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENTS_AT_ONCE = 64


def pieces(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    bos: int | None,
    n_tokens: int | None = None,
    n_uncounted: int | None = None,
) -> Iterator[np.ndarray]:
    """Pieces of at most `context_length` token ids, each of one document, each after `bos` if any.

    Ends with the piece that reaches `n_tokens`; None = all of the corpus. The first `n_uncounted`
    positions of a piece don't count, by default its BOS.
    """
    numbered = numbered_pieces(texts, tokenizer, context_length, bos, n_tokens, n_uncounted)
    return (piece for _, piece in numbered)


def numbered_pieces(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    bos: int | None,
    n_tokens: int | None = None,
    n_uncounted: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """`pieces`, each with the number of its document, counted from 0."""
    head = [] if bos is None else [bos]
    size = context_length - len(head)
    n_free = (len(head) if n_uncounted is None else n_uncounted) - len(head)
    left = np.inf if n_tokens is None else n_tokens
    texts = iter(texts)
    document = -1
    while documents := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
        for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
            document += 1
            for start in range(0, len(ids), size):
                if left <= 0:
                    return
                piece = ids[start : start + int(min(size, left + n_free))]
                left -= max(len(piece) - n_free, 0)
                yield document, np.asarray(head + piece, dtype=np.int32)
