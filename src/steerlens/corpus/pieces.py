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
) -> Iterator[np.ndarray]:
    """Pieces of at most `context_length` token ids, each of one document, each after `bos` if any.

    Ends with the piece that reaches `n_tokens`, BOS not counted; None = all of the corpus.
    """
    head = [] if bos is None else [bos]
    size = context_length - len(head)
    left = np.inf if n_tokens is None else n_tokens
    texts = iter(texts)
    while documents := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
        for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
            for start in range(0, len(ids), size):
                if left <= 0:
                    return
                piece = ids[start : start + int(min(size, left))]
                left -= len(piece)
                yield np.asarray(head + piece, dtype=np.int32)
