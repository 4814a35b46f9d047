"""Texts for what needs some: the installation's own, NLTK's webtext, a file's, or a data set's.

Tables and data sets go through `datasets`, streamed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TypeVar

from steerlens.config.schema import CORPORA, CorpusConfig
from steerlens.data.corpus.installed import documents
from steerlens.data.corpus.local import json_rows, lines, shuffled
from steerlens.data.corpus.values import Render, contents, text_of
from steerlens.data.corpus.webtext import webtext
from steerlens.errors import SteerlensError, unknown
from steerlens.storage.provenance import file_identity, hub_revision

SHUFFLE_BUFFER = 10_000
ROWS_WITHOUT = 1000
"""So many rows without a column, and there is none of that name."""
JSON_LOOKED_AT = 2**26
"""Bytes of a JSON file, at most, that is looked into before a run."""
MIN_STRING = 200
"""Strings in code that are shorter are messages, not prose."""

T = TypeVar("T")


def texts(config: CorpusConfig, render: Render | None = None) -> Iterator[str]:
    """Return the documents of the corpus in their order, empty ones left out.

    `render` writes chats as texts; None where a corpus of chats is refused.

    Raises:
        SteerlensError: if there is no text at all, no such column, or no such data set.
    """
    return (text for text, _ in marked_texts(config, render))


def marked_texts(config: CorpusConfig, render: Render | None = None) -> Iterator[tuple[str, bool]]:
    """Return `texts`, each with whether parts of it may be shipped, as the column `shippable` says.

    Raises:
        SteerlensError: as `texts`, and if that column has anything but booleans.
    """
    read = {"embedded": _installed, "webtext": _webtext, "text": _lines}.get(config.source)
    marked = ((text, True) for text in read(config)) if read else _of_rows(config, render)
    nonempty = ((text, mark) for text, mark in marked if text and not text.isspace())
    first = next(nonempty, None)
    if first is None:
        raise SteerlensError(f"the corpus {config.path or config.name} has no text in it.")
    return itertools.chain([first], nonempty)


def refuse_without_text(config: CorpusConfig) -> None:
    """Refuse a local corpus that can't be read, lacks a column or has no text, by its beginning.

    Of a table, Parquet, the columns and the number of rows tell, without `datasets`. JSON may have
    to be read as a whole to see its beginning: a large file is left for later.
    """
    path = Path(str(config.path))
    try:
        stat = path.stat()
    except OSError as error:
        raise SteerlensError(f"can't read the corpus {path}: {error.strerror}.") from error
    columns = config.column, config.shippable
    _refuse_without_text(path, config.source, *columns, stat.st_size, stat.st_mtime_ns)


@cache
def _refuse_without_text(
    path: Path, source: str, column: str, shippable: str | None, size: int, _mtime: int
) -> None:
    """Do the same once for all jobs of a sweep, while the file is the same."""
    config = CorpusConfig(path.name, source, str(path), column=column, shippable=shippable)
    if source == "parquet":
        _refuse_table(path, config)
    elif source == "text" or size <= JSON_LOOKED_AT:
        next(texts(config, contents))


def _refuse_table(path: Path, config: CorpusConfig) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names, n_rows = file.schema_arrow.names, file.metadata.num_rows
    except MemoryError:  # an ArrowException, too
        raise
    except (OSError, pa.ArrowException) as error:
        raise SteerlensError(
            f"can't read the corpus {path}: it is truncated or no Parquet file."
        ) from error
    for column in filter(None, (config.column, config.shippable)):
        if column not in names:
            raise unknown(f"column in the corpus {path}", column, names)
    if not n_rows:
        raise SteerlensError(f"the corpus {path} has no text in it.")


def identity(config: CorpusConfig, cache_dir: Path) -> dict[str, Any]:
    """Return which text this is, for provenance and the cache."""
    facts: dict[str, Any] = {
        "source": config.source,
        "column": config.column,
        "seed": config.seed,
        "n_tokens": config.n_tokens,
    }
    if config.source == "embedded":
        packages = sorted(
            f"{distribution.name}=={distribution.version}" for distribution in distributions()
        )
        digest = hashlib.sha256("\n".join(packages).encode()).hexdigest()
        return {**facts, "packages": len(packages), "packages_sha256": digest}
    if config.source == "webtext":
        return {**facts, "sha256": hashlib.sha256("\n".join(webtext()).encode()).hexdigest()}
    if config.source == "hub":
        assert config.path is not None
        revision = hub_revision(config.path, config.revision, kind="datasets")
        where = {"repo_id": config.path, "revision": revision or config.revision}
        return {**facts, **where, "subset": config.subset, "split": config.split}
    return {**facts, **file_identity(Path(str(config.path)), cache_dir)}


def _installed(config: CorpusConfig) -> Iterator[str]:
    """Yield one text for each module: what stands around a docstring belongs to it."""
    texts_of_modules = documents(kinds=("docstring", "string"), seed=config.seed or 0)
    for _, module in itertools.groupby(texts_of_modules, key=lambda document: document.module):
        yield "\n".join(
            document.text
            for document in module
            if document.kind == "docstring" or len(document.text) >= MIN_STRING
        )


def _webtext(config: CorpusConfig) -> Iterator[str]:
    lines = list(webtext())
    if config.seed is not None:
        random.Random(config.seed).shuffle(lines)
    yield from lines


def _lines(config: CorpusConfig) -> Iterator[str]:
    return _in_order(lines(Path(str(config.path))), config)


def _in_order(rows: Iterable[T], config: CorpusConfig) -> Iterator[T]:
    return iter(rows) if config.seed is None else shuffled(rows, config.seed, SHUFFLE_BUFFER)


def _of_rows(config: CorpusConfig, render: Render | None) -> Iterator[tuple[str, bool]]:
    if config.source == "json":
        rows = _in_order(json_rows(Path(str(config.path))), config)
    else:
        rows = _from_datasets(config)
    columns = [column for column in (config.column, config.shippable) if column]
    for row in _with_columns(rows, columns, config):
        mark = row[config.shippable] if config.shippable else True
        if not isinstance(mark, bool):
            raise SteerlensError(
                f"corpus.shippable={config.shippable} must be a column of booleans, and has "
                f"{mark!r}."
            )
        column = f"corpus.column={config.column} of {config.path}"
        yield text_of(row.get(config.column), render, column), mark


def _with_columns(
    rows: Iterable[dict[str, Any]], columns: Sequence[str], config: CorpusConfig
) -> Iterator[dict[str, Any]]:
    """Yield `rows`, in which a column may be missing here and there, but not in all of the
    first.
    """
    missing, row = set(columns), {}
    for number, row in enumerate(rows):
        missing -= row.keys()
        if missing and number >= ROWS_WITHOUT:
            break
        yield {**dict.fromkeys(columns), **row}
    if missing and row:
        raise unknown(f"column in the corpus {config.path}", min(missing), row)


def _from_datasets(config: CorpusConfig) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    if config.source not in ("hub", "parquet"):
        raise unknown("corpus.source", config.source, CORPORA)
    if config.source == "hub":
        where: dict[str, Any] = {
            "path": config.path,
            "name": config.subset,
            "split": config.split,
            "revision": config.revision,
        }
    else:
        where = {"path": config.source, "data_files": config.path, "split": "train"}
    try:
        data = load_dataset(**where, streaming=True)
        if config.seed is not None:
            data = data.shuffle(seed=config.seed, buffer_size=SHUFFLE_BUFFER)
        yield from data
    except MemoryError:
        raise
    except Exception as error:  # whatever a reader of somebody's files comes up with
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SteerlensError(f"can't read the corpus {config.path}: {line}") from error
