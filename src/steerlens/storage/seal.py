"""Checksums inside the files of the cache: Parquet, safetensors, JSON.

In the first two, the writer leaves a blank of fixed length among the file's metadata, and `seal`
fills it with the digest of all other bytes. So the file stays readable by every program, and is
written in one step.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

NAME = "steerlens.seal"
"""The key in the file's metadata."""

_FORMAT = "format-1:"
BLANK = _FORMAT + "0" * 64
"""The value that is left for the checksum."""

DIGEST = "sha256"
"""The entry with the checksum in a JSON object."""

_SEALED = re.compile(rb"format-1:([0-9a-f]{64})")


def with_blank(safetensors: bytes) -> bytes:
    """Give a safetensors file with a blank in its metadata, before all else."""
    size = int.from_bytes(safetensors[:8], "little")
    header = json.loads(safetensors[8 : 8 + size])
    metadata = {NAME: BLANK, **header.pop("__metadata__", {})}
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + safetensors[8 + size :]


def seal(content: bytes, owner: str, at_end: bool) -> bytes:
    """Fill the first or last blank in `content` with a checksum.

    Args:
        content: a whole file with a blank.
        owner: what the file belongs to; the same file of another owner doesn't fit its checksum.
        at_end: whether the format has its metadata at the end.
    """
    blank = BLANK.encode()
    start = content.rindex(blank) if at_end else content.index(blank)
    digest = hashlib.sha256(owner.encode() + content).hexdigest()
    return content[:start] + _FORMAT.encode() + digest.encode() + content[start + len(blank) :]


def is_sealed(content: bytes) -> bool:
    """Return whether a file has a checksum: not if an earlier version has written it."""
    return _SEALED.search(content) is not None


def is_intact(content: bytes, owner: str) -> bool:
    """Return whether one of the checksums in `content` is that of all its other bytes.

    A text in the file may look like one: then there are several, and one has to fit.
    """
    for match in _SEALED.finditer(content):
        blank = content[: match.start()] + BLANK.encode() + content[match.end() :]
        if hashlib.sha256(owner.encode() + blank).hexdigest().encode() == match[1]:
            return True
    return False


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """Give what JSON can hold with a checksum as its last entry."""
    return {**content, DIGEST: _digest(content)}


def without_digest(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the content without its checksum; None where that is another one's.

    What an earlier version has written has none.
    """
    content_alone = {name: value for name, value in content.items() if name != DIGEST}
    return (
        content_alone
        if content.get(DIGEST, _digest(content_alone)) == _digest(content_alone)
        else None
    )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
