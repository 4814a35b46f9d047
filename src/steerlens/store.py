"""Finished work, found again by what it is: the key says everything that the numbers depend on.

A key's folder holds parts, each written whole or not at all and named after what is in it. So a
killed run loses only what it was about to write, a wider run adds the missing parts, and processes
that share the cache can at worst write the same part twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError
from steerlens.files import atomic_write, write_json

if TYPE_CHECKING:
    import pyarrow as pa

KEY_FILE = "key.json"


@dataclass(frozen=True)
class Store:
    """Tables of features by key, under one folder."""

    root: Path

    def folder(self, key: Mapping[str, Any]) -> Path:
        """Where everything of `key` lies; made if needed."""
        text = json.dumps(key, sort_keys=True, default=str)
        folder = self.root / hashlib.sha256(text.encode()).hexdigest()[:32]
        if not (folder / KEY_FILE).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / KEY_FILE, json.loads(text))
        return folder

    def read(self, key: Mapping[str, Any]) -> pa.Table | None:
        """All rows of `key` that are finished, with their column `feature`; each feature once."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for part in sorted(self.folder(key).glob("part-*.parquet")):
            try:
                with part.open("rb") as file:
                    tables.append(pq.read_table(file))
            except (OSError, pa.ArrowException):
                part.unlink(missing_ok=True)  # not ours: ours are whole
        return merged(tables) if tables else None

    def add(self, key: Mapping[str, Any], table: pa.Table) -> None:
        """Keeps the rows of `table`. A cache that can't be written is no reason to stop a run."""
        import pyarrow.parquet as pq

        ids = ",".join(map(str, table["feature"].to_pylist()))
        name = f"part-{hashlib.sha256(ids.encode()).hexdigest()[:16]}.parquet"
        try:
            with atomic_write(self.folder(key) / name) as file:
                pq.write_table(table, file, compression="zstd")
        except (OSError, SteerlensError):
            pass


def merged(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables, the first of each feature."""
    import numpy as np
    import pyarrow as pa

    table = pa.concat_tables(tables, promote_options="default")
    _, first = np.unique(table["feature"].to_numpy(), return_index=True)
    return table.take(pa.array(first))
