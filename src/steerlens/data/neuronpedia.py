"""Neuronpedia's files: activations and explanations of features, as exported or downloaded.

Two layouts: one JSON file for each feature, `{layer}_{feature}.json` with `activations`, as the
API answers; and the export tree of a source, `activations/batch-*.jsonl.gz` and
`explanations/batch-*.jsonl.gz`. Explanations may also be in one file. Of an export with several
sources of a layer, the SAE's own counts alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steerlens.errors import SteerlensError
from steerlens.storage.files import json_values


@dataclass(frozen=True)
class TokenActivations:
    """One text on which a feature fires."""

    tokens: list[str]
    values: np.ndarray
    """Activation on each token."""


class OwnSource(NamedTuple):
    """What the source of an SAE may be called in files."""

    neuronpedia: str | None = None
    """By Neuronpedia, e.g. `20-gemmascope-res-16k`, where the SAE's metadata says so."""
    exported: str = ""
    """By `steerlens export`."""


UNNAMED = OwnSource()


def source_of_sae(neuronpedia_id: str | None, layer: int, release: str) -> OwnSource:
    """Give what the source of the SAE `release` of `layer` may be called.

    `neuronpedia_id` is what its metadata says, e.g. `gemma-2-2b/20-gemmascope-res-16k`.
    """
    name = neuronpedia_id.rsplit("/", 1)[-1] if neuronpedia_id else None
    return OwnSource(name, f"{layer}-{release}")


def activation_files(folder: Path, layer: int, sae_source: OwnSource) -> list[Path]:
    """Give the files for `layer` under `folder`, only the SAE's own where they are told by name.

    Args:
        folder: holds `{layer}_{feature}.json`, or an export's tree of one or more sources.
        layer: that the files are of.
        sae_source: what the SAE's source may be called.

    Raises:
        SteerlensError: there is no such folder, or nothing in it is of the layer.
    """
    if not folder.is_dir():
        raise SteerlensError(f"score.path: there is no folder {folder}.")
    if single := sorted(folder.glob(f"{layer}_*.json")):
        return single
    sources = [child for child in sorted(folder.iterdir()) if layer_of(child.name) == layer]
    sources = [export for export in sources if export.name in sae_source] or sources
    batches = [
        file
        for source_folder in (folder, *sources)
        for file in _batches(source_folder, "activations")
    ]
    if not batches:
        raise SteerlensError(
            f"score.path: {folder} has neither {layer}_FEATURE.json nor "
            f"activations/batch-*.jsonl.gz for layer {layer}."
        )
    return batches


def _batches(folder: Path, kind: str) -> list[Path]:
    """Return the batches of an export; of a file and its unpacked twin only the unpacked one."""
    by_name: dict[str, Path] = {}
    for file in sorted(folder.glob(f"{kind}/batch-*")):
        name = file.name.removesuffix(".gz")
        if name.endswith((".json", ".jsonl")):
            by_name.setdefault(name, file)  # a name comes before the same name with .gz
    return list(by_name.values())


def read_activations(
    folder: Path,
    layer: int,
    features: Iterable[int],
    model_names: Iterable[str],
    bos: str | None = None,
    sae_source: OwnSource = UNNAMED,
) -> dict[int, list[TokenActivations]]:
    """Return the examples of `features`; a feature that has no file or no row isn't in the answer.

    What a feature does on the token `bos` counts as 0; `sae_source` is what the SAE's source may be
    called, where that is known.

    Refuses an export of another model, layer or SAE, several sources of which none is surely the
    SAE's own, and rows that can't be what they say.
    """
    feature_ids = set(features)
    by_source: dict[str, dict[int, list[TokenActivations]]] = {}
    read: set[str] = set()
    for file in activation_files(folder, layer, sae_source):
        folder_name = file.parent.parent.name
        match = re.fullmatch(r"\d+_(\d+)", file.stem)
        named = int(match[1]) if match else None
        if named is not None and named not in feature_ids:
            continue
        for row in rows(file, "activations"):
            refuse_other(row, layer, model_names, file)
            # A row says itself which source it is of, or else its folder does.
            source = row.get("layer") or (folder_name if layer_of(folder_name) == layer else "")
            examples = by_source.setdefault(str(source), {})
            feature = _integer(row.get("index"), file) if named is None else named
            if feature not in feature_ids or (row.get("id") and str(row["id"]) in read):
                continue
            read.add(str(row.get("id")))
            examples.setdefault(feature, []).append(_example(row, file, bos))
    return by_source[own_source(by_source, sae_source, f"score.path={folder}")] if by_source else {}


def own_source(sources: Iterable[str], sae_source: OwnSource, where: str) -> str:
    """Give the one of `sources`, all of one layer and at least one, that is the SAE's own.

    Args:
        sources: ids such as `20-gemmascope-res-16k`; "" for rows that name none.
        sae_source: what the SAE's source may be called.
        where: the setting that they were read from.

    Raises:
        SteerlensError: they are surely another SAE's, or there are several and nothing tells which.
    """
    sources = sorted(sources)
    mine = [source for source in sources if source in sae_source]
    if len(mine) == 1:
        return mine[0]
    names = " and ".join(source or "rows that name none" for source in sources)
    if len(sources) > 1:
        raise SteerlensError(
            f"{where} holds several sources, {names}"
            + (f", but not {sae_source.neuronpedia}" if sae_source.neuronpedia else "")
            + "; name the folder of the SAE's own alone."
        )
    if sae_source.neuronpedia and sources[0]:
        raise SteerlensError(f"{where} is of {names}, but the SAE is {sae_source.neuronpedia}.")
    return sources[0]


Labels = Mapping[int, tuple[str, str]]
"""(label, address) by feature; the address is empty where nothing tells it."""


def read_labels(path: Path, model_names: Iterable[str]) -> dict[str, Labels]:
    """Return the labels of each source, from a file or folder of explanations.

    A feature with several explanations has the first.
    """
    labels: dict[str, dict[int, tuple[str, str]]] = {}
    for file in explanation_files(path):
        for row in rows(file, "explanations"):
            source, model = str(row.get("layer", "")), str(row.get("modelId", ""))
            layer = layer_of(source)
            if layer is None:
                raise SteerlensError(f"{file} has a row whose layer is {source!r}.")
            refuse_other(row, layer, model_names, file)
            feature = _integer(row.get("index"), file)
            address = f"https://www.neuronpedia.org/{model}/{source}/{feature}"
            text = str(row.get("description") or "").strip()
            if text:
                of_source = labels.setdefault(source, {})
                of_source.setdefault(feature, (text, address if model else ""))
    return dict(labels)


def explanation_files(path: Path) -> list[Path]:
    """List the files of labels: `path` itself, or those in the folder `path`.

    Raises:
        SteerlensError: there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SteerlensError(f"labels={path}: there is no such file or folder.")
    folders = sorted({file.parent.parent for file in path.rglob("explanations/batch-*")})
    if files := [file for folder in folders for file in _batches(folder, "explanations")]:
        return files
    raise SteerlensError(f"labels={path} is no file, and has no explanations/batch-*.jsonl.gz.")


def labels_of_layer(
    labels: Mapping[str, Labels], layer: int, sae_source: OwnSource, where: str
) -> Labels:
    """Return the labels of the SAE's own source at `layer`, none if there is no source of that
    layer.

    Raises:
        SteerlensError: as `own_source`.
    """
    sources = [source for source in labels if layer_of(source) == layer]
    return labels[own_source(sources, sae_source, where)] if sources else {}


def label_columns(labels: Labels, features: Iterable[int]) -> dict[str, list[str | None]]:
    """Return the columns `label` and `neuronpedia_url` of `features`, null where unknown."""
    labels_of_features = [labels.get(feature, (None, None)) for feature in features]
    return {
        "label": [text for text, _ in labels_of_features],
        "neuronpedia_url": [address or None for _, address in labels_of_features],
    }


def layer_of(source: str) -> int | None:
    """Return the layer in a source's id, e.g. 20 for `20-gemmascope-res-16k`."""
    match = re.match(r"(\d+)(-|$)", source)
    return int(match[1]) if match else None


def rows(file: Path, nested: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file: JSON Lines, one JSON array, or answers of Neuronpedia's API.

    An answer is an object about one feature with a list `nested`; each of that is a row, which has
    the answer's model, source and feature unless it says others.
    """
    for value in json_values(file):
        for value_of_file in value if isinstance(value, list) else [value]:
            row = _object(value_of_file, file)
            if not isinstance(row.get(nested), list):
                yield row
                continue
            shared = {key: row[key] for key in ("modelId", "layer", "index") if key in row}
            for inner in row[nested]:
                yield {**shared, **_object(inner, file)}


def refuse_other(
    row: Mapping[str, Any], layer: int, model_names: Iterable[str], file: Path
) -> None:
    """Refuse a row of another model or layer; rows may leave either out."""
    model, source = row.get("modelId"), row.get("layer")
    names = {_plain(name) for name in model_names}
    if model and _plain(str(model)) not in names:
        raise SteerlensError(f"{file} is of the model {model}, not of {next(iter(model_names))}.")
    if source is not None and layer_of(str(source)) not in (None, layer):
        raise SteerlensError(f"{file} is of {source}, not of layer {layer}.")


def firing(examples: Iterable[TokenActivations]) -> list[TokenActivations]:
    """Return those on which the feature fires at all, the largest activation first."""
    fires = [example for example in examples if max(example.values, default=0) > 0]
    return sorted(fires, key=lambda example: -example.values.max())


def peak(example: TokenActivations, underscore_is_space: bool = False) -> str:
    """Return the maximally activated token."""
    return plain_token(example.tokens[int(example.values.argmax())], underscore_is_space)


def marked(example: TokenActivations, around: int = 12) -> str:
    """Return a few tokens around the maximally activated one, which stands in «marks»."""
    at = int(example.values.argmax())
    tokens = [plain_token(token) for token in example.tokens]
    before, after = tokens[max(at - around, 0) : at], tokens[at + 1 :][:around]
    return f"{''.join(before)}«{tokens[at]}»{''.join(after)}"


def plain_token(token: str, underscore_is_space: bool = False) -> str:
    """Return a token's text with a real space for the marks that tokenizers write instead."""
    token = token.replace("\u2581", " ").replace("\u0120", " ")
    return token.replace("_", " ") if underscore_is_space else token


def _example(row: Any, file: Path, bos: str | None) -> TokenActivations:
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
    return TokenActivations([str(token) for token in tokens], numbers)


def _object(value: Any, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SteerlensError(f"{file}: expected an object, found {str(value)[:40]!r}.")
    return value


def _integer(value: Any, file: Path) -> int:
    if not re.fullmatch(r"\d+", str(value)):
        raise SteerlensError(f"{file} has a row whose index is {value!r}, not a feature.")
    return int(value)


def _plain(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
