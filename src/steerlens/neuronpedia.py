"""Neuronpedia's files: activations and explanations of features, as exported or downloaded.

Two layouts: one JSON file for each feature, `{layer}_{feature}.json` with `activations`; and the
export tree of a source, `activations/batch-*.jsonl.gz` and `explanations/batch-*.jsonl.gz`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steerlens.errors import SteerlensError


@dataclass(frozen=True)
class Example:
    """One text on which a feature fires."""

    tokens: list[str]
    values: np.ndarray
    """Activation on each token."""


def activation_files(folder: Path, layer: int) -> tuple[list[Path], bool]:
    """The files for `layer` under `folder`, and whether they are an export's batches."""
    if not folder.is_dir():
        raise SteerlensError(f"score.path: there is no folder {folder}.")
    one_each = sorted(folder.glob(f"{layer}_*.json"))
    if one_each:
        return one_each, False
    batches = sorted(folder.glob("activations/batch-*.jsonl*"))
    batches += [
        file
        for source in sorted(folder.iterdir())
        if re.match(rf"{layer}(-|$)", source.name)
        for file in sorted(source.glob("activations/batch-*.jsonl*"))
    ]
    if not batches:
        raise SteerlensError(
            f"score.path: {folder} has neither {layer}_FEATURE.json nor "
            f"activations/batch-*.jsonl.gz for layer {layer}."
        )
    return batches, True


def read_activations(
    folder: Path,
    layer: int,
    features: Iterable[int],
    model_names: Iterable[str],
    bos: str | None = None,
) -> dict[int, list[Example]]:
    """The examples of `features`; a feature that has no file or no row isn't in the answer.

    What a feature does on the token `bos` counts as 0.

    Refuses an export of another model or layer, and rows that can't be what they say.
    """
    files, is_export = activation_files(folder, layer)
    wanted = set(features)
    found: dict[int, list[Example]] = {}
    if not is_export:
        for file in files:
            match = re.fullmatch(rf"{layer}_(\d+)", file.stem)
            if match and int(match[1]) in wanted:
                rows = _object(_load(file.read_text(encoding="utf-8"), file), file)
                found[int(match[1])] = [_example(row, file, bos) for row in _list(rows, file)]
        return found
    for file in files:
        for row in jsonl(file):
            refuse_other(row, layer, model_names, file)
            feature = _integer(row.get("index"), file)
            if feature in wanted:
                found.setdefault(feature, []).append(_example(row, file, bos))
    return found


def read_labels(path: Path, model_names: Iterable[str]) -> dict[tuple[int, int], tuple[str, str]]:
    """(label, address) by (layer, feature), from a file or folder of explanations.

    A feature with several explanations has the first.
    """
    files = [path] if path.is_file() else sorted(path.rglob("explanations/batch-*.jsonl*"))
    if not files:
        raise SteerlensError(f"labels={path} is no file, and has no explanations/batch-*.jsonl.gz.")
    labels: dict[tuple[int, int], tuple[str, str]] = {}
    for file in files:
        for row in jsonl(file):
            source, model = str(row.get("layer", "")), str(row.get("modelId", ""))
            layer = layer_of(source)
            if layer is None:
                raise SteerlensError(f"{file} has a row whose layer is {source!r}.")
            refuse_other(row, layer, model_names, file)
            feature = _integer(row.get("index"), file)
            address = f"https://www.neuronpedia.org/{model}/{source}/{feature}"
            text = str(row.get("description") or "").strip()
            if text:
                labels.setdefault((layer, feature), (text, address if model else ""))
    return labels


def label_columns(
    labels: Mapping[tuple[int, int], tuple[str, str]], layer: int, features: Iterable[int]
) -> dict[str, list[str | None]]:
    """The columns `label` and `neuronpedia_url` of a layer's `features`, null where unknown."""
    found = [labels.get((layer, feature), (None, None)) for feature in features]
    return {
        "label": [text for text, _ in found],
        "neuronpedia_url": [address or None for _, address in found],
    }


def layer_of(source: str) -> int | None:
    """The layer in a source's id, e.g. 20 for `20-gemmascope-res-16k`."""
    match = re.match(r"(\d+)(-|$)", source)
    return int(match[1]) if match else None


def jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, gzipped or not."""
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield _object(_load(line, file), file)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SteerlensError(f"{file} can't be read: it is truncated or no such file.") from error


def refuse_other(
    row: Mapping[str, Any], layer: int, model_names: Iterable[str], file: Path
) -> None:
    """Refuse a row of another model or layer; rows may leave either out."""
    model, source = row.get("modelId"), row.get("layer")
    known = {_plain(name) for name in model_names}
    if model and _plain(str(model)) not in known:
        raise SteerlensError(f"{file} is of the model {model}, not of {next(iter(model_names))}.")
    if source is not None and layer_of(str(source)) not in (None, layer):
        raise SteerlensError(f"{file} is of {source}, not of layer {layer}.")


def firing(examples: Iterable[Example]) -> list[Example]:
    """Those on which the feature fires at all, the largest activation first."""
    found = [example for example in examples if max(example.values, default=0) > 0]
    return sorted(found, key=lambda example: -example.values.max())


def peak(example: Example, underscore_is_space: bool = False) -> str:
    """The maximally activated token."""
    return plain_token(example.tokens[int(example.values.argmax())], underscore_is_space)


def marked(example: Example, around: int = 12) -> str:
    """A few tokens around the maximally activated one, which stands in «marks»."""
    at = int(example.values.argmax())
    tokens = [plain_token(token) for token in example.tokens]
    before, after = tokens[max(at - around, 0) : at], tokens[at + 1 :][:around]
    return f"{''.join(before)}«{tokens[at]}»{''.join(after)}"


def plain_token(token: str, underscore_is_space: bool = False) -> str:
    """A token's text with a real space for the marks that tokenizers write instead."""
    token = token.replace("\u2581", " ").replace("\u0120", " ")
    return token.replace("_", " ") if underscore_is_space else token


def _example(row: Any, file: Path, bos: str | None) -> Example:
    tokens, values = _object(row, file).get("tokens"), row.get("values")
    if not isinstance(tokens, list) or not isinstance(values, list):
        raise SteerlensError(f"{file} has an activation without tokens and values.")
    if len(tokens) != len(values):
        raise SteerlensError(
            f"{file} has an activation with {len(tokens)} tokens and {len(values)} values."
        )
    try:
        numbers = np.array(values, dtype=float)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise SteerlensError(f"{file} has an activation whose values are not all numbers.")
    numbers[[token == bos for token in tokens]] = 0
    return Example([str(token) for token in tokens], numbers)


def _load(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SteerlensError(f"{file} is not valid JSON ({error}).") from error


def _object(value: Any, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SteerlensError(f"{file}: expected an object, found {str(value)[:40]!r}.")
    return value


def _list(rows: dict[str, Any], file: Path) -> list[Any]:
    activations = rows.get("activations")
    if not isinstance(activations, list):
        raise SteerlensError(f"{file} has no list of activations.")
    return activations


def _integer(value: Any, file: Path) -> int:
    if not re.fullmatch(r"\d+", str(value)):
        raise SteerlensError(f"{file} has a row whose index is {value!r}, not a feature.")
    return int(value)


def _plain(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
