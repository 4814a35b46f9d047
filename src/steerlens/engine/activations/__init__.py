"""What a pass over a corpus leaves: on what each feature of an SAE fires, and how strongly.

Only counts, sums and the top examples of each feature: F x n numbers, however long the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

ARRAYS = ("fired_F", "sum_F", "value_FN", "piece_FN", "position_FN")
DETAIL_ARRAYS = ("window_FNW", "bin_FB", "range_F")

WINDOW = 32
"""Tokens of a text that are shown around its peak."""
BINS = 16
"""Bins of a histogram of activations."""


@dataclass(frozen=True)
class Details:
    """What a pass leaves besides where it is to be shown; W = WINDOW tokens, B = BINS."""

    window_FNW: np.ndarray
    """uint8: of each example, the feature's activations from `window_start` on; 255 = the peak's
    alone, at least 1 where the feature fires."""
    bin_FB: np.ndarray
    """int64: how many activations fall into each of B equal bins from 0 to `range_F`."""
    range_F: np.ndarray
    """float32: the smallest power of two above every activation; 0 where the feature never fires.

    Not the largest activation itself, which only the end of the corpus tells."""


@dataclass(frozen=True)
class Activations:
    """What the pass leaves; F features, N examples. A feature fires where its activation is > 0.

    BOS and other positions that the SAE wasn't trained on (`Subject.n_uncounted`) count nowhere:
    every feature may do anything there.
    """

    n_tokens: int
    fired_F: np.ndarray
    """int64: on how many tokens each feature fires."""
    sum_F: np.ndarray
    """float64: sum of the activations of each feature."""
    value_FN: np.ndarray
    """float32: largest activation in each of the feature's top pieces, falling (to four digits,
    then by piece); 0 = no piece."""
    piece_FN: np.ndarray
    """int32: index into `pieces`."""
    position_FN: np.ndarray
    """int32: where in the piece that activation is."""
    pieces: list[np.ndarray]
    """Token ids of every piece that was read, in their order."""
    details: Details | None = None
    """Only of a pass that was asked for them."""

    @property
    def max_F(self) -> np.ndarray:
        """Give each feature's largest activation, (F,)."""
        return self.value_FN.max(axis=1)

    def token_FN(self, features: np.ndarray) -> np.ndarray:
        """Return the token on which each example peaks, -1 where there is no example."""
        length = np.array([len(piece) for piece in self.pieces])
        start = np.concatenate([[0], length.cumsum()[:-1]])
        flat = np.concatenate(self.pieces)
        at_FN = start[self.piece_FN[features]] + self.position_FN[features]
        return np.where(self.value_FN[features] > 0, flat[at_FN], -1)


def activations_bytes(activations: Activations) -> bytes:
    """Return the result of a pass as safetensors."""
    arrays = {name: getattr(activations, name) for name in ARRAYS}
    if activations.details:
        arrays |= {name: getattr(activations.details, name) for name in DETAIL_ARRAYS}
    arrays["tokens"] = np.concatenate(activations.pieces)
    arrays["lengths"] = np.array([len(piece) for piece in activations.pieces])
    arrays["n_tokens"] = np.array([activations.n_tokens])
    return save(arrays)


def read_activations(path: Path) -> Activations | None:
    """Return the result in a file of `activations_bytes`, or None if it isn't there or isn't
    whole.
    """
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError):
        return None
    has_details = DETAIL_ARRAYS[0] in arrays
    return Activations(
        n_tokens=int(arrays["n_tokens"][0]),
        pieces=np.split(arrays["tokens"], arrays["lengths"].cumsum()[:-1]),
        details=Details(**{name: arrays[name] for name in DETAIL_ARRAYS}) if has_details else None,
        **{name: arrays[name] for name in ARRAYS},
    )
