"""A steering table without a model, in which some scores guide and others don't."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from steerlens.results import STEERING


def steering(layers: Iterable[int] = range(4), n: int = 30, **columns: Any) -> pd.DataFrame:
    """`n` features in each of `layers`, of which a few have no best factor or no input score.

    Success rises with the output score and with the layer, falls with the input score, and has
    nothing to do with the random score; every feature has a random direction, with less success.
    """
    rng = np.random.default_rng(0)
    layer = np.repeat(np.array(list(layers)), n)
    size = len(layer)
    output = 10.0 ** rng.uniform(-9, 0, size)
    success = rng.poisson(50 * np.clip(0.1 * np.log10(output) + 1.1, 0, 2)) / 50
    success += 0.3 * (layer > np.median(layer))
    no_factor = np.arange(size) % 11 == 3
    features = pd.DataFrame(
        {
            "layer": layer,
            "feature": np.tile(np.arange(n), size // n),
            "hook_name": [f"blocks.{i}.hook_resid_post" for i in layer],
            "best_factor": np.where(no_factor, np.nan, 2.0),
            "success_20": np.where(no_factor, np.nan, success),
            "output_score": output,
            "input_score": np.where(
                np.arange(size) % 7 == 2, np.nan, np.round(rng.random(size) / (1 + success), 1)
            ),
            "random_score": rng.random(size),
            "mine": rng.integers(0, 3, size),
        }
    )
    control = features.assign(control="random_direction", success_20=success / 4, best_factor=4.0)
    both = pd.concat([features, control], ignore_index=True)
    return STEERING.frame(both.assign(model="toy", sae="toy-sae", texts=50).assign(**columns))
