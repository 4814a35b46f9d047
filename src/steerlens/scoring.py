"""Every chosen method on one subject: columns of `features.parquet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from steerlens.errors import SteerlensError
from steerlens.logit_lens import logit_lens
from steerlens.registry import ScoreConfig, load_method
from steerlens.scores import ScoreRun
from steerlens.subject import Subject


def score_layer(
    subject: Subject,
    features: Sequence[int],
    configs: Mapping[str, ScoreConfig],
    logit_lens_k: int,
    run: ScoreRun,
) -> dict[str, Any]:
    """Columns for `features` of one subject, one entry per feature, in their order."""
    ids = np.asarray(features, dtype=np.int64)
    # As many tokens as any method wants, so that the logit lens runs once.
    k = max([logit_lens_k, *(getattr(config, "top_k", 0) for config in configs.values())])
    lens = logit_lens(subject, torch.from_numpy(ids), k, run.memory_budget)[:, :logit_lens_k]
    columns: dict[str, Any] = {
        "model": [subject.lm.name] * len(ids),
        "sae": [subject.name] * len(ids),
        "hook_name": [subject.hook_name] * len(ids),
        "layer": [subject.layer] * len(ids),
        "feature": ids,
        "logit_lens_tokens": decode_tokens(subject, lens),
        "logit_lens_token_ids": lens.tolist(),
    }
    for method, config in configs.items():
        for name, values in load_method(config.method).score(subject, ids, config, run).items():
            if len(values) != len(ids):
                raise SteerlensError(
                    f"scoring method {method!r} returned {len(values)} values of {name!r} for "
                    f"{len(ids)} features."
                )
            if name in columns:
                raise SteerlensError(f"two scoring methods fill the column {name!r}.")
            columns[name] = values
    return columns


def decode_tokens(subject: Subject, token_ids_FK: torch.Tensor) -> list[list[str]]:
    """The text of each token, one list of K strings per feature."""
    unique = token_ids_FK.unique().tolist()
    text = dict(zip(unique, subject.lm.tokenizer.batch_decode([[t] for t in unique]), strict=True))
    return [[text[token] for token in row] for row in token_ids_FK.tolist()]
