"""A corpus as tokens: documents cut into pieces that a model reads one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENTS_AT_ONCE = 64
CHARACTERS_AT_ONCE = 2**18
"""A longer document is tokenised in parts, so that the first tokens of a huge one come soon and its
encoding isn't in memory. A token across a cut, which only text without spaces has, is two."""


def pieces(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    context_length: int,
    bos: int | None,
    n_tokens: int | None = None,
    n_uncounted: int | None = None,
) -> Iterator[np.ndarray]:
    """Return pieces of at most `context_length` token ids, each of one document, each after `bos`
    if any.

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
    """Yield `pieces`, each with the number of its document, counted from 0."""
    head = [] if bos is None else [bos]
    size = context_length - len(head)
    n_free = (len(head) if n_uncounted is None else n_uncounted) - len(head)
    n_left = np.inf if n_tokens is None else n_tokens
    ids: list[int] = []
    for batch in _batches(_parts(texts)):
        parts = tokenizer([part.text for part in batch], add_special_tokens=False)["input_ids"]
        for part, new in zip(batch, parts, strict=True):
            ids += new
            stop = len(ids) if part.is_last else len(ids) - len(ids) % size
            for start in range(0, stop, size):
                if n_left <= 0:
                    return
                piece = ids[start : start + int(min(size, n_left + n_free))]
                n_left -= max(len(piece) - n_free, 0)
                yield part.document, np.asarray(head + piece, dtype=np.int32)
            ids = ids[stop:]
        if n_left <= 0:
            return


class _Part(NamedTuple):
    """A part of a document that is tokenised by itself."""

    document: int
    text: str
    is_last: bool


def _parts(texts: Iterable[str]) -> Iterator[_Part]:
    for document, text in enumerate(texts):
        parts = cut(text, CHARACTERS_AT_ONCE)
        part = next(parts)
        for following in parts:
            yield _Part(document, part, False)
            part = following
        yield _Part(document, part, True)


def cut(text: str, size: int) -> Iterator[str]:
    """Cut `text` into parts of at most `size` characters, between words where there is a space."""
    start = 0
    while len(text) - start > size:
        space = text.rfind(" ", start + size // 2, start + size)
        end = start + size if space < 0 else space
        yield text[start:end]
        start = end
    yield text[start:]


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Yield `parts` in lists that are tokenised at once: few documents, and few characters."""
    batch: list[_Part] = []
    for part in parts:
        batch.append(part)
        characters = sum(len(part.text) for part in batch)
        if len(batch) == DOCUMENTS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
