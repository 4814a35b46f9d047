"""`steerlens examples FILE key=value ...`: one corpus pass, and what it leaves in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from steerlens.config.schema import RunConfig
from steerlens.config.settings import parse_subject
from steerlens.config.sources import N_TEXTS
from steerlens.data.corpus import marked_texts
from steerlens.data.corpus.sequences import numbered_pieces
from steerlens.engine.activations import Activations
from steerlens.engine.activations.details import window_start
from steerlens.engine.corpus_pass import (
    PiecesFired,
    activations_of,
    context_length,
    in_groups,
    read_corpus,
)
from steerlens.engine.examples import (
    COLUMNS,
    FORMAT,
    METADATA_KEY,
    N_WINDOWS,
    sae_identity,
)
from steerlens.engine.run_context import ScoreRun
from steerlens.engine.subject import Subject, load_subjects
from steerlens.errors import SteerlensError
from steerlens.report.terminal import progress
from steerlens.storage.files import atomic_write, json_text, make_folder
from steerlens.storage.provenance import versions
from steerlens.storage.store import Store

COMPRESSION_LEVEL = 9
"""zstd's; at 19 files are a tenth smaller, and writing takes minutes."""


def write_examples(config: RunConfig, file: Path) -> Path:
    """Read the corpus of `config` with all its SAEs, and writes their examples to `file`.

    The pass is kept in the cache: a killed one goes on.

    Raises:
        SteerlensError: for a file that isn't called .parquet or can't be written, and as a pass.
    """
    if file.suffix != ".parquet":
        raise SteerlensError(f"{file} must end with .parquet.")
    make_folder(file.parent)
    requests = [PiecesFired(at_most=N_TEXTS)]
    settings = parse_subject(config)
    budget = settings.memory_budget
    store = Store(settings.cache_dir / "scores")
    saes, tables = {}, []
    metadata: dict[str, Any] = {"format": FORMAT, "columns": COLUMNS, "release": config.sae.title}
    for group in in_groups(load_subjects(settings), requests, budget):
        # Of its own for each group, so that only one group's activations are in memory.
        run = ScoreRun(budget, config.seed, task=progress, corpus=config.corpus, store=store)
        read_corpus(group, requests, run, details=True)
        for subject in group:
            activations = activations_of(subject, None, run)
            saes[str(subject.layer)] = {
                **sae_identity(subject),
                "n_tokens": activations.n_tokens,
                "n_texts": len(activations.pieces),
            }
            may_show = pieces_that_may_show(subject, run)
            tables.append(examples_table(subject, activations, may_show))
        of_model = {key: value for key, value in group[0].lm.identity.items() if key != "device"}
        metadata["model"] = {"name": group[0].lm.name, **of_model}
        metadata["corpus"] = {**(run.corpus_key() or {}), "shippable": config.corpus.shippable}
        metadata["context_length"] = context_length(group[0], None, run)
    metadata |= {"saes": saes, "seed": config.seed, "versions": versions()}
    table = pa.concat_tables(tables)
    text = json.dumps(json.loads(json_text(metadata)))
    table = table.replace_schema_metadata({METADATA_KEY: text.encode()})
    with atomic_write(file) as stream:
        pq.write_table(
            table,
            stream,
            row_group_size=max(
                len(table) for table in tables
            ),  # a layer is read without the others
            compression="zstd",
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=False,  # zstd alone is smaller
        )
    return file


def pieces_that_may_show(subject: Subject, run: ScoreRun) -> np.ndarray | None:
    """Yield which pieces of the corpus may be shown around their peaks, bool; None = all of
    them.
    """
    corpus = run.corpus
    assert corpus is not None
    if corpus.shippable is None:
        return None
    marks: list[bool] = []

    def documents() -> Iterator[str]:
        for text, mark in marked_texts(corpus, subject.lm.transcript):
            marks.append(mark)
            yield text

    length = context_length(subject, None, run)
    numbered = numbered_pieces(
        documents(), subject.lm.tokenizer, length, subject.bos, corpus.n_tokens, subject.n_uncounted
    )
    return np.array([marks[document] for document, _ in numbered])


def examples_table(
    subject: Subject, activations: Activations, may_show: np.ndarray | None = None
) -> pa.Table:
    """Return the rows of one layer.

    Args:
        subject: its SAE.
        activations: of a pass with details and at least `N_TEXTS` examples.
        may_show: of each piece, whether a window of it may be stored; None = all.
    """
    details = activations.details
    assert details is not None
    every = np.arange(subject.d_sae)
    token_FN = activations.token_FN(every)[:, :N_TEXTS]
    value_FN = activations.value_FN[:, :N_TEXTS]
    n_texts_F = (value_FN > 0).sum(axis=1)
    max_F = activations.max_F
    share_FN = np.round(255 * value_FN / np.maximum(max_F, np.finfo(np.float32).tiny)[:, None])
    share_FN = share_FN.clip(1, 255).astype(np.uint8)
    fired_F = activations.fired_F
    token_type = pa.uint16() if int(subject.lm.bridge.cfg.d_vocab) <= 2**16 else pa.int32()
    windows = [
        _windows(subject, activations, feature, int(n), may_show)
        for feature, n in enumerate(n_texts_F)
    ]
    columns: dict[str, Any] = {
        "layer": pa.array(np.full(len(every), subject.layer), pa.int32()),
        "feature": pa.array(every, pa.int32()),
        "activation_frequency": fired_F / max(activations.n_tokens, 1),
        "mean_activation": pa.array(
            np.divide(activations.sum_F, fired_F, out=np.zeros(len(every)), where=fired_F > 0),
            mask=fired_F == 0,
        ),
        "max_activation": max_F,
        "histogram": pa.array(list(details.bin_FB), pa.list_(pa.int32())),
        "histogram_range": details.range_F,
        "peak_tokens": pa.array(_first(token_FN, n_texts_F), pa.list_(token_type)),
        "peak_activations": pa.array(_first(share_FN, n_texts_F), pa.list_(pa.uint8())),
        "window_tokens": _column(windows, "tokens", pa.list_(token_type)),
        "window_activations": _column(windows, "activations", pa.list_(pa.uint8())),
        "window_max": _column(windows, "max", pa.float32()),
        "window_position": _column(windows, "position", pa.uint8()),
        "window_text": _column(windows, "text", pa.uint8()),
    }
    assert list(columns) == list(COLUMNS)
    return pa.table(columns)


def _first(table_FN: np.ndarray, n_F: np.ndarray) -> list[np.ndarray]:
    return [row[:n] for row, n in zip(table_FN, n_F, strict=True)]


def _column(windows: Sequence[Sequence[dict[str, Any]]], name: str, item: pa.DataType) -> pa.Array:
    return pa.array([[window[name] for window in of_one] for of_one in windows], pa.list_(item))


def _windows(
    subject: Subject,
    activations: Activations,
    feature: int,
    n_texts: int,
    may_show: np.ndarray | None,
) -> list[dict[str, Any]]:
    """Return the first `N_WINDOWS` examples of `feature` that may be shown."""
    details = activations.details
    assert details is not None
    piece_N = activations.piece_FN[feature, :n_texts]
    texts = np.arange(n_texts) if may_show is None else np.flatnonzero(may_show[piece_N])
    windows = []
    for text in texts[:N_WINDOWS]:
        piece = activations.pieces[piece_N[text]]
        position = int(activations.position_FN[feature, text])
        start = int(
            window_start(torch.tensor(position), torch.tensor(len(piece)), subject.n_uncounted)
        )
        share_W = details.window_FNW[feature, text]
        tokens = piece[start : start + len(share_W)]
        windows.append(
            {
                "tokens": tokens,
                "activations": share_W[: len(tokens)],
                "max": activations.value_FN[feature, text],
                "position": position - start,
                "text": text,
            }
        )
    return windows
