"""Which features of an SAE a run looks at, and which of them it steers with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from steerlens.config.parse import parse_feature_file, parse_ids
from steerlens.config.schema import FeaturesConfig, SelectionConfig
from steerlens.errors import SteerlensError, unknown

if TYPE_CHECKING:
    import pandas as pd

IDS = ("layer", "feature")

T = TypeVar("T")


def select_features(
    config: FeaturesConfig,
    layer: int,
    d_sae: int,
    seed: int,
    pieces_F: np.ndarray | None = None,
) -> list[int]:
    """Return feature ids of one layer, in the order given; random ones are sorted.

    The draw depends on `seed` and `layer` alone, not on the other layers of the run.

    Args:
        config: which features.
        layer: their layer.
        d_sae: number of features of the SAE.
        seed: the run's.
        pieces_F: in how many sequences of the corpus each feature fires, (F,); for `min_examples`.

    Raises:
        SteerlensError: if there are no such features, or fewer than `n` qualify.
    """
    if config.min_examples is not None:
        assert pieces_F is not None
        return _firing(config, layer, seed, pieces_F)
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


def part(sequence: Sequence[T], shard: tuple[int, int] | None) -> list[T]:
    """Give the part i of n, counted from 0, of a layer's features, or of other things.

    Parts differ by at most one in size, and one after the other they are the whole, in its order.

    Args:
        sequence: the whole.
        shard: i and n; None = the whole.
    """
    index, of = shard or (0, 1)
    return [*sequence[len(sequence) * index // of : len(sequence) * (index + 1) // of]]


def _firing(config: FeaturesConfig, layer: int, seed: int, pieces_F: np.ndarray) -> list[int]:
    """Return all features that fire in `min_examples` sequences, or the first `n` of them in random
    order.

    The order is a permutation of all features, so that another corpus or another `min_examples`
    exchanges only the features whose counts it changes. It isn't the draw without `min_examples`.
    """
    qualify_F = pieces_F >= config.min_examples
    count = int(qualify_F.sum())
    if count < (config.n or 1):
        than = f", fewer than features.n={config.n}" if config.n else ""
        raise SteerlensError(
            f"{count:,} features of layer {layer} fire in at least {config.min_examples} sequences "
            f"of the corpus (features.min_examples){than}; lower that, or read more text."
        )
    if config.n is None:
        return np.flatnonzero(qualify_F).tolist()
    order = np.random.default_rng([seed, layer]).permutation(len(pieces_F))
    return sorted(order[qualify_F[order]][: config.n].tolist())


def chosen(
    features: pd.DataFrame, selection: SelectionConfig, may_be_none: bool = False
) -> pd.DataFrame:
    """Return the rows of a table of features to steer with; without a threshold and `top_n`, all.

    Raises:
        SteerlensError: if the score wasn't computed or is no number, or if no feature passes and
            that may not be.
    """
    if selection.threshold is None and selection.top_n is None:
        return features
    rows = best_first(features, selection.score)
    if selection.threshold is not None:
        by = selection.score
        rows = rows.loc[rows[by] >= selection.threshold]
        if rows.empty and not may_be_none:
            raise SteerlensError(
                f"no feature has {by} >= {selection.threshold:g}; the largest is "
                f"{features[by].max():.3g}."
            )
    return rows.head(selection.top_n or len(rows)).sort_index()


def best_first(features: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the rows that have the score `by`, highest first, of equal ones the lower layer and
    id.

    Raises:
        SteerlensError: if the score wasn't computed or is no number.
    """
    numeric = [name for name in features if getattr(features[name].dtype, "kind", "") in "iuf"]
    filled = [str(name) for name in numeric if any(features[name].notna().tolist())]
    scores = [name for name in filled if name not in IDS]
    if by not in scores:
        raise unknown("selection.score", by, scores)
    rows = features.loc[features[by].notna()]
    return rows.sort_values(by=[by, "layer", "feature"], ascending=[False, True, True])
