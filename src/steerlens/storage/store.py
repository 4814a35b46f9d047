"""Finished work, found again by what it is: the key says everything that the numbers depend on.

A key's folder holds parts, each written whole or not at all and named after what is in it. So a
killed run loses only what it was about to write, a wider run adds the missing parts, and processes
that share the cache can at worst write the same part twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError
from steerlens.storage.files import atomic_write, parse_json, tidy, write_json
from steerlens.storage.seal import (
    BLANK,
    NAME,
    is_intact,
    is_sealed,
    seal,
    with_blank,
    with_digest,
    without_digest,
)

if TYPE_CHECKING:
    import pyarrow as pa

KEY_FILE = "key.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """Tables of features by key, under one folder."""

    root: Path

    def folder(self, key: Mapping[str, Any]) -> Path:
        """Return where everything of `key` lies, or would lie."""
        return self.root / hashlib.sha256(_text(key).encode()).hexdigest()[:32]

    def keep(self, key: Mapping[str, Any], name: str, content: bytes) -> None:
        """Write a file of `key`. A cache that can't be written is no reason to stop a run.

        A safetensors file gets a checksum, with which `load` compares it.
        """
        if name.endswith(".safetensors"):
            content = seal(with_blank(content), self.folder(key).name, at_end=False)
        self._write(key, name, content)

    def _write(self, key: Mapping[str, Any], name: str, content: bytes) -> None:
        folder = self.folder(key)
        try:
            if not (folder / KEY_FILE).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / KEY_FILE, json.loads(_text(key)))
            tidy(folder)
            with atomic_write(folder / name) as file:
                file.write(content)
        except (OSError, SteerlensError) as error:
            _warn_once(f"the cache can't be written ({error}): nothing is kept there.")

    def load(self, key: Mapping[str, Any], name: str) -> bytes | None:
        """Read a file of `key` if it is there and what was written.

        What doesn't fit its checksum is set aside and told. Files of earlier versions have none.
        """
        path = self.folder(key) / name
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _warn_unreadable(path, error)
            return None
        if is_sealed(content) and not is_intact(content, path.parent.name):
            _set_aside(path, "isn't what was written there")
            return None
        return content

    def keep_json(self, key: Mapping[str, Any], name: str, content: Mapping[str, Any]) -> None:
        """Write what JSON can hold as a file of `key`, with a checksum."""
        self.keep(key, name, json.dumps(with_digest(content)).encode())

    def load_json(self, key: Mapping[str, Any], name: str) -> dict[str, Any] | None:
        """Read what `keep_json` has written, if it is there and whole."""
        content = self.load(key, name)
        try:
            value = parse_json(content) if content else None
        except ValueError:
            return None
        return without_digest(value) if isinstance(value, dict) else None

    def read(self, key: Mapping[str, Any], by: Sequence[str] = ("feature",)) -> pa.Table | None:
        """Return all rows of `key` that are finished; each once, and sorted, by the columns
        `by`.
        """
        import pyarrow as pa

        tables: list[pa.Table] = []
        for name in self._parts(key):
            content = self.load(key, name)
            if content is None:
                continue
            try:
                table = _part(content, by)
                pa.unify_schemas([stored.schema for stored in (*tables[:1], table)])
            except MemoryError:  # an ArrowException, too, and says nothing of the file
                raise
            except (KeyError, pa.ArrowException):
                _set_aside(self.folder(key) / name, "is no part of these results")
            else:
                tables.append(table)
        return merged(tables, by) if tables else None

    def _parts(self, key: Mapping[str, Any]) -> list[str]:
        folder = self.folder(key)
        try:
            names = [path.name for path in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            _warn_unreadable(folder, error)
            return []
        tidy(folder)
        return sorted(name for name in names if fnmatch(name, "part-*.parquet"))

    def add(
        self, key: Mapping[str, Any], table: pa.Table, by: Sequence[str] = ("feature",)
    ) -> None:
        """Keep the rows of `table`, which the columns `by` tell apart, with a checksum."""
        import pyarrow.parquet as pq

        ids = json.dumps(table.select(list(by)).to_pydict())
        name = f"part-{hashlib.sha256(ids.encode()).hexdigest()[:16]}.parquet"
        buffer = BytesIO()
        metadata = {**(table.schema.metadata or {}), NAME.encode(): BLANK.encode()}
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
        self._write(key, name, seal(buffer.getvalue(), self.folder(key).name, at_end=True))


def _part(content: bytes, by: Sequence[str]) -> pa.Table:
    """Return the table in a part, without our metadata.

    Raises:
        ArrowException: it is no Parquet file.
        KeyError: it lacks a column of `by`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(content))
    table.select(list(by))
    metadata = {**(table.schema.metadata or {})}
    metadata.pop(NAME.encode(), None)
    return table.replace_schema_metadata(metadata or None)


def _set_aside(path: Path, why: str) -> None:
    """Give a damaged file another name, so that it is computed again, and say so."""
    _warn_once(f"{path} {why}: it is set aside (.damaged), and computed again.")
    with contextlib.suppress(OSError):
        path.replace(path.with_name(f"{path.name}.damaged"))


def _warn_unreadable(path: Path, error: OSError) -> None:
    why = (error.strerror or str(error)).lower()
    _warn_once(f"{path} in the cache can't be read ({why}): it is computed again.")


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, default=str)


def merged(tables: Sequence[pa.Table], by: Sequence[str] = ("feature",)) -> pa.Table:
    """Return the rows of all tables, sorted, the first of each that the columns `by` don't tell
    apart.
    """
    import pyarrow as pa

    table = pa.concat_tables(tables, promote_options="default")
    first = table.select(list(by)).to_pandas().drop_duplicates().sort_values(list(by)).index
    return table.take(pa.array(first))
