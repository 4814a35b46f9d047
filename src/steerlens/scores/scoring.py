"""Every chosen method on one subject: columns of `features.parquet`."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from steerlens.config.registry import BLOCK, ScoreConfig, load_part
from steerlens.engine.cached_rows import cached_rows
from steerlens.engine.corpus_pass import read_corpus
from steerlens.engine.lens import LOGIT, lens_key, promoted_tokens
from steerlens.engine.logit_lens import kept_logit_lens, logit_lens
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES
from steerlens.scores import output

if TYPE_CHECKING:
    import pyarrow as pa


def score_layer(
    subject: Subject,
    features: Sequence[int],
    configs: Mapping[str, ScoreConfig],
    logit_lens_k: int,
    ctx: RunContext,
) -> dict[str, Any]:
    """Return columns for `features` of one subject, one entry per feature, in their order."""
    read_corpus([subject], configs.values(), ctx)
    ids = np.asarray(features, dtype=np.int64)
    # As many tokens as any method wants, so that the logit lens runs once.
    k = max([logit_lens_k, *(getattr(config, "top_k", 0) for config in configs.values())])
    promoted_tokens(subject, torch.empty(0, dtype=torch.int64), k, ctx)  # a memo of this width
    with kept_logit_lens(subject, k, ctx.store):
        # First the scores, a block of features at a time, so that the first is there soon.
        tables = [_score(subject, ids, config, ctx) for config in configs.values()]
        lens = logit_lens(subject, torch.from_numpy(ids), k, ctx.memory_budget)[:, :logit_lens_k]
    columns: dict[str, Any] = {
        "model": [subject.lm.name] * len(ids),
        "sae": [subject.name] * len(ids),
        "hook_name": [subject.hook_name] * len(ids),
        "layer": [subject.layer] * len(ids),
        "feature": ids,
        "logit_lens_tokens": decode_tokens(subject, lens),
        "logit_lens_token_ids": lens.tolist(),
    }
    if ctx.lens.name != LOGIT:
        promoted = promoted_tokens(subject, torch.from_numpy(ids), k, ctx)[:, :logit_lens_k]
        columns["promoted_tokens"] = decode_tokens(subject, promoted)
        columns["promoted_token_ids"] = promoted.tolist()
    for table in tables:
        for name in table.column_names:
            if name == "feature":
                continue
            if name in columns:
                raise SteerlensError(f"two scoring methods fill the column {name!r}.")
            columns[name] = table[name]
    return columns


def null_columns(
    subject: Subject, configs: Mapping[str, ScoreConfig], ctx: RunContext
) -> dict[str, Any] | None:
    """Return columns of `NULL_SCORES` for one subject; None where no method has random
    directions.
    """
    config = next(
        (config for config in configs.values() if isinstance(config, output.OutputScoreConfig)),
        None,
    )
    if config is None or not config.null_directions:
        return None
    scores_N = output.null_scores(subject, config, ctx)
    return {
        "model": [subject.lm.name] * len(scores_N),
        "sae": [subject.name] * len(scores_N),
        "hook_name": [subject.hook_name] * len(scores_N),
        "layer": [subject.layer] * len(scores_N),
        "direction": np.arange(len(scores_N)),
        "output_score": scores_N,
    }


def _score(subject: Subject, ids: np.ndarray, config: ScoreConfig, ctx: RunContext) -> pa.Table:
    """Yield the method's columns for `ids`: what the store has, and what is missing there."""
    key = score_key(subject, config, ctx) if ctx.store else {}

    def scores_of(missing: pd.DataFrame) -> Iterator[pa.Table]:
        at_once = min(BLOCK, config.AT_ONCE or BLOCK)
        for start in range(0, len(missing), at_once):
            # A copy, as pandas gives read-only arrays, which torch warns of.
            block = missing["feature"].to_numpy(copy=True)[start : start + at_once]
            yield _score_block(subject, block, config, ctx)

    rows = pd.DataFrame({"feature": ids})
    return cached_rows(ctx.store, key, rows, ["feature"], scores_of, ctx.progress)


def _score_block(
    subject: Subject, block: np.ndarray, config: ScoreConfig, ctx: RunContext
) -> pa.Table:
    import pyarrow as pa

    columns = load_part("scores", config.method).score(subject, block, config, ctx)
    for name, values in columns.items():
        if len(values) != len(block):
            raise SteerlensError(
                f"scoring method {config.method!r} returned {len(values)} values of {name!r} for "
                f"{len(block)} features."
            )
    arrays = {name: FEATURES.array(name, values, len(block)) for name, values in columns.items()}
    return pa.table({"feature": block, **arrays})


def score_key(subject: Subject, config: ScoreConfig, ctx: RunContext) -> dict[str, Any]:
    """Return everything that a method's numbers depend on."""
    source = inspect.getsource(load_part("scores", config.method))
    of_run = {"seed": lambda: ctx.seed, "corpus": ctx.corpus_key}
    later = ctx.later_subjects(subject, n) if (n := config.n_later()) != 0 else []
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in config.files()]
    return {
        **subject.key,
        **{name: of_run[name]() for name in config.uses()},
        **(lens_key(ctx) if config.uses_lens() else {}),
        **({"later": [each.identity for each in later]} if later else {}),
        "files": files,
        "score": dataclasses.asdict(config),
        "method": hashlib.sha256(source.encode()).hexdigest(),
    }


def decode_tokens(subject: Subject, token_ids_FK: torch.Tensor) -> list[list[str]]:
    """Return the text of each token, one list of K strings per feature."""
    unique = token_ids_FK.unique().tolist()
    text = dict(zip(unique, subject.lm.tokenizer.batch_decode([[t] for t in unique]), strict=True))
    return [[text[token] for token in row] for row in token_ids_FK.tolist()]
