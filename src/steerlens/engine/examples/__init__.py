"""Examples that ship with SAEs: on what each feature fires, and how strongly, in one Parquet file.

One row for each (layer, feature), written by our own corpus pass (`runs.examples`), so that scores
that need texts need no pass. What it is of (model, SAEs, corpus, versions) is JSON in the schema's
metadata under `steerlens.examples`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlens.config.folders import SAE_WEIGHTS
from steerlens.errors import SteerlensError
from steerlens.storage.files import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

    from steerlens.engine.subject import Subject

METADATA_KEY = b"steerlens.examples"
FORMAT = 1

N_WINDOWS = 5
"""Texts of each feature that are stored around their peak."""

COLUMNS = {
    "layer": "The SAE's layer.",
    "feature": "Feature id; every feature of a layer has a row, in their order.",
    "activation_frequency": "Share of the corpus's tokens on which the feature fires.",
    "mean_activation": "Over these tokens; null for a feature that never fires.",
    "max_activation": "Over all tokens; 0 for a feature that never fires.",
    "histogram": "How many activations > 0 fall into each of 16 equal bins from 0 to "
    "`histogram_range`.",
    "histogram_range": "The smallest power of two above `max_activation`.",
    "peak_tokens": "Token ids at the peaks of up to 100 texts, one each, the largest first.",
    "peak_activations": "The activations there in 255ths of `max_activation`.",
    "window_tokens": "Token ids of up to 5 of these texts around their peaks, 32 each at most.",
    "window_activations": "The feature's activation on each of these tokens, in 255ths of "
    "`window_max`; at least 1 where it fires.",
    "window_max": "The activation at each window's peak.",
    "window_position": "Where in the window the peak is.",
    "window_text": "Which of the texts of `peak_tokens` the window is of.",
}
"""The columns, in their order."""


@dataclass(frozen=True)
class Window:
    """A few tokens of a text around its peak."""

    tokens: np.ndarray
    activations: np.ndarray
    """float: of each token, to 1/255 of the peak's."""
    position: int
    """Where the peak is."""


@dataclass(frozen=True)
class Examples:
    """The examples of one layer, a row for each feature."""

    metadata: Mapping[str, Any]
    table: pa.Table

    def numbers(self, column: str, features: np.ndarray) -> np.ndarray:
        """Return a column of numbers for `features`, (n,), as float64; NaN where there is none."""
        return self.table[column].to_numpy().astype(float)[features]

    def lists(self, column: str, features: np.ndarray) -> list[np.ndarray]:
        """Return a column of lists for `features`."""
        rows = self.table[column].combine_chunks()
        offsets, values = rows.offsets.to_numpy(), rows.values.to_numpy()
        return [values[offsets[feature] : offsets[feature + 1]] for feature in features]

    def n_texts(self) -> np.ndarray:
        """Return in how many texts each feature fires, as far as their peaks are stored, (F,)."""
        return np.diff(self.table["peak_tokens"].combine_chunks().offsets.to_numpy())

    def windows(self, feature: int) -> list[Window]:
        """Return the windows of one feature, the largest activation first."""
        row = {
            name: self.table[name][int(feature)].as_py()
            for name in ("window_tokens", "window_activations", "window_max", "window_position")
        }
        return [
            Window(np.array(tokens), np.array(shares) / 255 * maximum, position)
            for tokens, shares, maximum, position in zip(*row.values(), strict=True)
        ]


def sae_identity(subject: Subject) -> dict[str, Any]:
    """Return what examples depend on besides the model and the corpus: which SAE, and where it
    counts.
    """
    identity = subject.identity
    weights = {file["file"]: file["sha256"] for file in identity.get("files", [])}
    return {
        "weights": weights.get(SAE_WEIGHTS)
        or f"{identity.get('repo_id')}/{identity.get('path')}@{identity.get('revision')}",
        "hook_name": subject.hook_name,
        "d_sae": subject.d_sae,
        "prepend_bos": subject.prepend_bos,
        "uncounted_positions": subject.n_uncounted,
    }


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what the examples in a file are of.

    Raises:
        SteerlensError: if there is no such file, or it has no examples of this format.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise SteerlensError(f"there is no file of examples {path}.")
    try:
        schema = pq.read_schema(path)
    except MemoryError:  # an ArrowException, too
        raise
    except (OSError, pa.ArrowException) as error:
        raise SteerlensError(f"{path} is truncated or no Parquet file; copy it again.") from error
    metadata = parse_json((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if metadata.get("format") != FORMAT:
        raise SteerlensError(
            f"{path} has no examples of features in format {FORMAT}; `steerlens examples FILE ...` "
            "writes them."
        )
    return metadata


def read_examples(path: Path, subject: Subject, columns: Iterable[str] | None = None) -> Examples:
    """Return the examples of `subject`'s features, all columns or some.

    Raises:
        SteerlensError: as `read_metadata`; for examples of other layers, or of another SAE.
    """
    metadata = read_metadata(path)
    refuse_missing_layers(path, metadata, [subject.layer])
    of_layer = metadata["saes"][str(subject.layer)]
    for name, value in sae_identity(subject).items():
        if of_layer[name] != value:
            raise SteerlensError(
                f"{path} has examples of another SAE than {subject.name} at layer "
                f"{subject.layer}: {name} is {of_layer[name]} there, {value} here; leave it out "
                "with sae.examples=null."
            )
    return read_layer(path, metadata, subject.layer, columns)


def read_layer(
    path: Path, metadata: Mapping[str, Any], layer: int, columns: Iterable[str] | None = None
) -> Examples:
    """Return the examples of one layer of a file that has it, of whatever SAE."""
    import pyarrow.parquet as pq

    table = pq.read_table(
        path, columns=None if columns is None else list(columns), filters=[("layer", "==", layer)]
    )
    return Examples(metadata, table)


def refuse_missing_layers(path: Path, metadata: Mapping[str, Any], layers: Iterable[int]) -> None:
    """Refuse the first of `layers` that a file has no examples of."""
    present = layers_of(metadata)
    for layer in layers:
        if layer not in present:
            raise SteerlensError(
                f"{path} has no examples of layer {layer}, only of {', '.join(map(str, present))}."
            )


def layers_of(metadata: Mapping[str, Any]) -> list[int]:
    """Return the layers that a file has examples of, rising."""
    return sorted(int(layer) for layer in metadata["saes"])
