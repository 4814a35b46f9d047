"""Files that are either whole or not there, and the texts that users bring."""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import socket
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import psutil

from steerlens.errors import SteerlensError

CONFIG_FILE = "config.yaml"
"""The resolved configuration, in a run's folder."""

_BOMS = {
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}

_PACKED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}

UNREADABLE = (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError)
"""What reading a text file raises that isn't there, is broken off, or is no text."""
JOB_FILE = "job.json"
"""What a job of a sweep was asked for, in its folder."""

SWEEP_FILE = "sweep.json"
"""Which command a sweep is of, in its folder."""

_TEMPORARY = re.compile(r"\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{12}\.tmp$")

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def cannot_write(path: Path, error: OSError) -> SteerlensError:
    """Return `error`, which happened while writing `path`, in one sentence."""
    if error.errno in _FULL:
        return SteerlensError(
            f"no space left to write {path}; free some, or choose another place with "
            "paths.output_dir=DIR."
        )
    reason = (error.strerror or str(error)).lower()
    return SteerlensError(
        f"can't write {path} ({reason}); choose another place with paths.output_dir=DIR."
    )


def make_folder(path: Path) -> Path:
    """Create folder `path` and its parents, and make sure that it can be written to."""
    probe = _temporary(path / "probe")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` once the block has ended without an error.

    Until then an older `path` stays as it was, and after an error nothing new is left behind.
    """
    path = Path(path)
    # In the same folder, because only within one file system is a rename atomic.
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _temporary(path: Path) -> Path:
    """Name a file beside `path` that says which process it belongs to."""
    return path.with_name(f".{path.name}.{_machine_id()}.{os.getpid()}.{uuid.uuid4().hex[:12]}.tmp")


@cache
def _machine_id() -> str:
    """Return this machine, in the names of temporary files."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in `folder` that killed processes have left.

    Those of another machine after a day, because nobody can tell from here whether it still runs.
    """
    with suppress(OSError):
        for path in folder.glob(".*.tmp"):
            if (match := _TEMPORARY.search(path.name)) and _is_left(path, match[1], int(match[2])):
                path.unlink(missing_ok=True)


@cache
def tidy(folder: Path) -> None:
    """Do `remove_leftovers` once in a process: a folder of the cache may have many files."""
    remove_leftovers(folder)


def _is_left(path: Path, machine: str, pid: int) -> bool:
    if machine == _machine_id():
        return not psutil.pid_exists(pid)
    return time.time() - path.stat().st_mtime > 24 * 3600


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; see `json_text`."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return `value` as indented JSON.

    Numbers that JSON doesn't know (NaN, infinity) become null.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return `value` in JSON's own types; also takes numpy's scalars and arrays, paths, pandas'
    NA.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if type(value).__name__ in {"NAType", "NaTType"}:
        return None
    return str(value)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None when it is missing or broken."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """Give the value that JSON of others holds; `hooks` are those of `json.loads`.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text, **hooks)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def open_text(path: Path) -> TextIO:
    """Open a text file of a user's for reading: UTF-8, or what its byte order mark says.

    The mark (of Notepad, Excel or PowerShell) is no part of the text. A packed file (gzip, bzip2,
    xz), whatever its name, is unpacked. Reading raises one of `UNREADABLE`.
    """
    with path.open("rb") as file:
        head = file.read(6)
    opener = next((how for magic, how in _PACKED.items() if head.startswith(magic)), open)
    stream: Any = opener(path, "rb")
    return io.TextIOWrapper(stream, encoding=_marked_encoding(stream.peek(4)) or "utf-8")


def json_values(path: Path) -> Iterator[Any]:
    """Read the JSON values of a file of a user's: one a line, or one in many lines.

    Raises:
        SteerlensError: there is no such file, or something in it is no JSON.
    """
    try:
        with open_text(path) as lines:
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                return
            try:
                value = parse_json(first)
            except ValueError:
                value = _load(first + lines.read(), path)
            del first
            yield value
            for line in lines:
                if line.strip():
                    yield _load(line, path)
    except UNREADABLE as error:
        raise SteerlensError(f"{path} can't be read: it is truncated or no such file.") from error


def _load(text: str, path: Path) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise SteerlensError(f"{path} is not valid JSON ({error}).") from error


def has_byte_order_mark(path: Path) -> bool:
    """Tell whether a file begins with one, which libraries that read plain UTF-8 refuse."""
    with path.open("rb") as file:
        return _marked_encoding(file.read(4)) is not None


def _marked_encoding(head: bytes) -> str | None:
    return next((name for mark, name in _BOMS.items() if head.startswith(mark)), None)


def read_text(path: Path) -> str:
    """Return the text of a file of a user's, as `open_text` reads it."""
    with open_text(path) as file:
        return file.read()


def read_json_object(path: Path, key: str) -> dict[str, Any]:
    """Read a JSON file of a user's, given as the setting `key`, that must hold an object."""
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError:
        raise SteerlensError(f"{key}: {path.parent} has no {path.name}.") from None
    except (OSError, ValueError) as error:
        raise SteerlensError(f"{key}: {path} can't be read ({error}).") from error
    if not isinstance(content, dict):
        raise SteerlensError(f"{key}: {path} is not a JSON object.")
    return content
