"""Rows of a local file of lines or of JSON, read piece by piece."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from steerlens.data.corpus.sequences import cut
from steerlens.errors import SteerlensError
from steerlens.storage.files import UNREADABLE, json_values, open_text

LONGEST_LINE = 2**20
"""Characters. A longer line of a text file is read as several documents, so that memory doesn't
grow with it."""

T = TypeVar("T")


def lines(file: Path) -> Iterator[str]:
    r"""Yield the lines of a text file, without their ends. Only \n, \r and \r\n end a line."""
    try:
        with open_text(file) as stream:
            remainder = ""
            while block := stream.read(LONGEST_LINE):
                *complete, remainder = (remainder + block).split("\n")
                yield from complete
                *parts, remainder = cut(remainder, LONGEST_LINE)
                yield from parts
            yield remainder
    except UNREADABLE as error:
        raise SteerlensError(f"can't read the corpus {file}: it is no text in UTF-8.") from error


def json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON Lines, of one JSON array, or a single one."""
    for value in json_values(file):
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, dict):
                raise SteerlensError(
                    f"can't read the corpus {file}: {row!r:.40} is no JSON object with a column "
                    "of texts."
                )
            yield row


def shuffled(rows: Iterable[T], seed: int, buffer_size: int) -> Iterator[T]:
    """Yield `rows` in an order drawn from `seed`, with at most `buffer_size` of them in memory."""
    rng = random.Random(seed)
    buffer: list[T] = []
    for row in rows:
        buffer.append(row)
        if len(buffer) > buffer_size:
            index = rng.randrange(len(buffer))
            buffer[index], buffer[-1] = buffer[-1], buffer[index]
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer
