"""Texts for what needs some: the installation's own, NLTK's webtext, a file's, or a data set's.

Files and data sets go through `datasets`, streamed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from steerlens.config.schema import CorpusConfig
from steerlens.corpus.installed import documents
from steerlens.corpus.webtext import webtext
from steerlens.errors import SteerlensError, unknown
from steerlens.provenance import file_identity, hub_revision

SHUFFLE_BUFFER = 10_000
MIN_STRING = 200
"""Strings in code that are shorter are messages, not prose."""


def texts(config: CorpusConfig) -> Iterator[str]:
    """The documents of the corpus in their order, empty ones left out.

    Raises:
        SteerlensError: if there is no text at all, no such column, or no such data set.
    """
    return (text for text, _ in marked_texts(config))


def marked_texts(config: CorpusConfig) -> Iterator[tuple[str, bool]]:
    """`texts`, each with whether parts of it may be shipped, as the column `shippable` says.

    Raises:
        SteerlensError: as `texts`, and if that column has anything but booleans.
    """
    read = {"embedded": _installed, "webtext": _webtext}.get(config.source)
    marked = ((text, True) for text in read(config)) if read else _from_datasets(config)
    found = ((text, mark) for text, mark in marked if text.strip())
    first = next(found, None)
    if first is None:
        raise SteerlensError(f"the corpus {config.path or config.name} has no text in it.")
    return itertools.chain([first], found)


def identity(config: CorpusConfig, cache_dir: Path) -> dict[str, Any]:
    """Which text this is, for provenance and the cache."""
    what: dict[str, Any] = {
        "source": config.source,
        "column": config.column,
        "seed": config.seed,
        "n_tokens": config.n_tokens,
    }
    if config.source == "embedded":
        packages = sorted(f"{one.name}=={one.version}" for one in distributions())
        digest = hashlib.sha256("\n".join(packages).encode()).hexdigest()
        return {**what, "packages": len(packages), "packages_sha256": digest}
    if config.source == "webtext":
        return {**what, "sha256": hashlib.sha256("\n".join(webtext()).encode()).hexdigest()}
    if config.source == "hub":
        assert config.path is not None
        revision = hub_revision(config.path, config.revision, kind="datasets")
        where = {"repo_id": config.path, "revision": revision or config.revision}
        return {**what, **where, "subset": config.subset, "split": config.split}
    return {**what, **file_identity(Path(str(config.path)), cache_dir)}


def _installed(config: CorpusConfig) -> Iterator[str]:
    """One text for each module: what stands around a docstring belongs to it."""
    found = documents(kinds=("docstring", "string"), seed=config.seed or 0)
    for _, module in itertools.groupby(found, key=lambda document: document.module):
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


def _from_datasets(config: CorpusConfig) -> Iterator[tuple[str, bool]]:
    from datasets import load_dataset

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
        for row in data:
            for column in filter(None, (config.column, config.shippable)):
                if column not in row:
                    raise unknown(f"column in the corpus {config.path}", column, row)
            mark = row[config.shippable] if config.shippable else True
            if not isinstance(mark, bool):
                raise SteerlensError(
                    f"corpus.shippable={config.shippable} must be a column of booleans, and has "
                    f"{mark!r}."
                )
            yield str(row[config.column] or ""), mark
    except SteerlensError:
        raise
    except Exception as error:  # whatever a reader of somebody's files comes up with
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SteerlensError(f"can't read the corpus {config.path}: {line}") from error
