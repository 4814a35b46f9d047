"""Examples in Neuronpedia's layout, for tools that read that: `steerlens export FILE.parquet`.

`{layer}-{release}/activations/batch-*.jsonl.gz`, a row for each text whose peak is stored: its
window where that ships, else the token at the peak alone. `neuronpedia.read_activations` reads it
back, and gives the same input scores.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from steerlens.data.neuronpedia import plain_token
from steerlens.engine.examples import Examples, layers_of, read_layer, read_metadata
from steerlens.errors import SteerlensError
from steerlens.storage.files import atomic_write, make_folder

FEATURES_IN_BATCH = 256
"""Features in a file: about as large as Neuronpedia's own."""


def export_neuronpedia(file: Path, folder: Path, tokenizer: Any) -> list[Path]:
    """Write the examples in `file` under `folder`; gives the files.

    Args:
        file: of `steerlens examples`.
        folder: where the export's tree begins.
        tokenizer: of the model that the examples are of.

    Raises:
        SteerlensError: if `file` has no examples, or tokens that the tokenizer doesn't know.
    """
    metadata = read_metadata(file)
    written = []
    for layer in layers_of(metadata):
        examples = read_layer(file, metadata, layer)
        source = f"{layer}-{metadata['release']}"
        out = make_folder(folder / source / "activations")
        d_sae = len(examples.table)
        for batch, start in enumerate(range(0, d_sae, FEATURES_IN_BATCH)):
            features = np.arange(start, min(start + FEATURES_IN_BATCH, d_sae))
            lines = [
                json.dumps({"modelId": metadata["model"]["name"], "layer": source, **row})
                for row in _rows(examples, features, tokenizer)
            ]
            path = out / f"batch-{batch}.jsonl.gz"
            with atomic_write(path) as stream:
                stream.write(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
            written.append(path)
    return written


def _rows(examples: Examples, features: np.ndarray, tokenizer: Any) -> Iterator[dict[str, Any]]:
    peaks = examples.lists("peak_tokens", features)
    shares = examples.lists("peak_activations", features)
    texts = examples.lists("window_text", features)
    maxima = examples.numbers("max_activation", features)
    for row, feature in enumerate(features.tolist()):
        windows = dict(zip(texts[row].tolist(), examples.windows(feature), strict=True))
        for text, (token, share) in enumerate(zip(peaks[row], shares[row], strict=True)):
            tokens, values, at = [int(token)], np.array([share / 255 * maxima[row]]), 0
            if window := windows.get(text):
                tokens, values, at = window.tokens.tolist(), window.activations, window.position
            yield {
                "index": str(feature),
                "tokens": [token_text(tokenizer, token) for token in tokens],
                "values": [float(f"{value:.5g}") for value in values],
                "maxValue": float(f"{values[at]:.5g}"),
                "maxValueTokenIndex": at,
            }


def token_text(tokenizer: Any, token: int) -> str:
    """Return a token's text; where decoding loses what tells it from others, the tokenizer's own
    piece.

    Raises:
        SteerlensError: if the tokenizer has no such token.
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:
        raise SteerlensError(
            f"the examples have token {token}, which isn't in the model's vocabulary of "
            f"{len(tokenizer)}; choose their model with model=NAME."
        )
    text = tokenizer.decode([token])
    loses = "\ufffd" in text or piece == f"\u2581{text}"
    return plain_token(piece) if loses else text
