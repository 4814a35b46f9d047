"""Tables of features without a model, with the tokens that real vocabularies have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from steerlens.results import features_frame

NASTY = ["[bold red]x[/]", "\x1b[31mred", "\u202eabc", "\n", " the", "`|<b>", "$x_1$", "\u0301", ""]


def frame(layers: Iterable[int] = range(3), n: int = 12, **columns: Any) -> pd.DataFrame:
    """`n` features in each of `layers` with scores from 1e-12 to 1; `columns` replace others."""
    layer = np.repeat(np.array(list(layers), dtype=np.int64), n)
    size = len(layer)
    tokens = [NASTY[i % len(NASTY) :] + NASTY[: i % len(NASTY)] for i in range(size)]
    filled: dict[str, Any] = {
        "model": "toy",
        "sae": "toy-sae",
        "hook_name": [f"blocks.{i}.hook_resid_post" for i in layer],
        "layer": layer,
        "feature": np.tile(np.arange(n), len(layer) // n),
        "output_score": np.random.default_rng(0).permutation(np.geomspace(1e-12, 0.99, size)),
        "output_rank": np.arange(size),
        "output_probability": np.linspace(0, 1, size),
        "input_score": np.random.default_rng(1).permutation(np.linspace(0, 1, size)),
        "output_token": [row[0] for row in tokens],
        "logit_lens_tokens": tokens,
        "logit_lens_token_ids": np.zeros((size, len(NASTY)), dtype=np.int64),
    }
    return features_frame(filled | columns)
