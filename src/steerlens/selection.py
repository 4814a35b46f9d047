"""Which features of an SAE a run looks at."""

from __future__ import annotations

import numpy as np

from steerlens.config.parse import parse_feature_file, parse_ids
from steerlens.config.schema import FeaturesConfig
from steerlens.errors import SteerlensError


def select_features(config: FeaturesConfig, layer: int, d_sae: int, seed: int) -> list[int]:
    """Feature ids of one layer, in the order given; random ones are sorted.

    The draw depends on `seed` and `layer` alone, not on the other layers of the run.
    """
    if config.ids is not None:
        return parse_ids(config.ids, d_sae)
    if config.file is not None:
        by_layer = parse_feature_file(config.file)
        if layer not in by_layer:
            raise SteerlensError(
                f"features.file={config.file} names no features of layer {layer}; it has layers "
                f"{', '.join(map(str, by_layer))}."
            )
        return parse_ids(by_layer[layer], d_sae, where=f"{config.file}, layer {layer}")
    if config.n is not None:
        if config.n > d_sae:
            raise SteerlensError(f"features.n={config.n} is more than the SAE's {d_sae} features.")
        draw = np.random.default_rng([seed, layer]).choice(d_sae, config.n, replace=False)
        return sorted(draw.tolist())
    return list(range(d_sae))
