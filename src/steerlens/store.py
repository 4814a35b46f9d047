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
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError
from steerlens.files import atomic_write, write_json

if TYPE_CHECKING:
    import pyarrow as pa

KEY_FILE = "key.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """Tables of features by key, under one folder."""

    root: Path

    def folder(self, key: Mapping[str, Any]) -> Path:
        """Where everything of `key` lies, or would lie."""
        return self.root / hashlib.sha256(_text(key).encode()).hexdigest()[:32]

    def keep(self, key: Mapping[str, Any], name: str, content: bytes) -> None:
        """Writes a file of `key`. A cache that can't be written is no reason to stop a run."""
        folder = self.folder(key)
        try:
            if not (folder / KEY_FILE).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / KEY_FILE, json.loads(_text(key)))
            with atomic_write(folder / name) as file:
                file.write(content)
        except (OSError, SteerlensError) as error:
            logger.warning("the cache can't be written (%s): nothing is kept there.", error)

    def read(self, key: Mapping[str, Any], by: Sequence[str] = ("feature",)) -> pa.Table | None:
        """All rows of `key` that are finished; each once, and sorted, by the columns `by`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for part in sorted(self.folder(key).glob("part-*.parquet")):
            try:
                with part.open("rb") as file:
                    tables.append(pq.read_table(file))
            except (OSError, pa.ArrowException):
                with contextlib.suppress(OSError):
                    part.unlink()  # not ours: ours are whole
        return merged(tables, by) if tables else None

    def add(
        self, key: Mapping[str, Any], table: pa.Table, by: Sequence[str] = ("feature",)
    ) -> None:
        """Keeps the rows of `table`, which the columns `by` tell apart."""
        import pyarrow.parquet as pq

        ids = json.dumps(table.select(list(by)).to_pydict())
        name = f"part-{hashlib.sha256(ids.encode()).hexdigest()[:16]}.parquet"
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.keep(key, name, buffer.getvalue())


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, default=str)


def merged(tables: Sequence[pa.Table], by: Sequence[str] = ("feature",)) -> pa.Table:
    """The rows of all tables, sorted, the first of each that the columns `by` don't tell apart."""
    import pyarrow as pa

    table = pa.concat_tables(tables, promote_options="default")
    first = table.select(list(by)).to_pandas().drop_duplicates().sort_values(list(by)).index
    return table.take(pa.array(first))
