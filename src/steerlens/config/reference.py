"""The authors' files of published scores: which there are, and the features that they list."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from steerlens.config.entries import entries
from steerlens.config.schema import ReferenceConfig
from steerlens.errors import SteerlensError, unknown
from steerlens.storage.files import parse_json, read_text


class Known(NamedTuple):
    """What the authors' name of a model stands for."""

    features: str
    """The model's name in the file of features."""
    model: str
    sae: str


KNOWN = {
    "gemma2_2b": Known("gemma_2b", "gemma-2-2b", "gemma-scope-2b-res"),
    "gemma2_9b": Known("gemma_9b", "gemma-2-9b", "gemma-scope-9b-res"),
    "llama31": Known("llama31", "llama-3.1-8b", "llama-scope-8x"),
    "pythia70": Known("pythia70", "pythia-70m-deduped", "pythia-70m-res"),
}

COLUMNS = {
    "input_scores": ("input_score", "input_scores", (0.0, 1.0)),
    "output_scores": ("output_score", "output_scores", (0.0, 1.0)),
    "factors": ("best_factor", "best_steering_factors", (-math.inf, math.inf)),
}
"""By key of `reference`: our column, the end of the file's name, and what a number can be."""

Key = tuple[int, int]
"""Layer and feature."""


def check_reference(config: ReferenceConfig) -> None:
    """Refuse, in one sentence, a reference that can't be read; reads no scores."""
    if config.path is None and config.model is None and not config.alone:
        return
    if config.model is None:
        raise SteerlensError(f"reference.path needs reference.model=NAME: {', '.join(KNOWN)}.")
    if config.model not in KNOWN:
        raise unknown("reference.model", config.model, KNOWN)
    listed_features(config)
    files = {key: cache_file(config, key) for key in COLUMNS}
    if not (files["input_scores"] or files["output_scores"]):
        raise SteerlensError(f"reference.path={config.path} has no scores of {config.model}.")


def cache_file(config: ReferenceConfig, key: str) -> Path | None:
    """Return the file for `key` (features, input_scores, output_scores, factors): the one that is
    given, else the one of the model's name in or below `reference.path`. None if there is none.

    Raises:
        SteerlensError: a given file or the folder isn't there, or two files have the name.
    """
    file = getattr(config, key)
    if file is not None:
        if not Path(file).is_file():
            raise SteerlensError(f"reference.{key}: there is no file {file}.")
        return Path(file)
    if config.path is None or config.model is None:
        return None
    folder = Path(config.path)
    if not folder.is_dir():
        raise SteerlensError(f"reference.path: there is no folder {folder}.")
    files = sorted(folder.rglob(_file_name(config.model, key)))
    if len(files) > 1:
        raise SteerlensError(
            f"reference.path: {files[0]} and {files[1]} have the same name; choose one with "
            f"reference.{key}=FILE."
        )
    return files[0] if files else None


def _file_name(model: str, key: str) -> str:
    if key == "features":
        return f"{KNOWN[model].features}_features.json"
    return f"{model}_{COLUMNS[key][1]}.json"


def listed_features(config: ReferenceConfig) -> tuple[list[Key], int]:
    """Return the listed features in the file's order, each once, and how many are there again."""
    assert config.model is not None
    file = cache_file(config, "features")
    if file is None:
        models = [name for name in KNOWN if _has_files(config, name)]
        has = f"it has files of {', '.join(models)}" if models else "give reference.features=FILE"
        name = _file_name(config.model, "features")
        raise SteerlensError(f"reference.path={config.path} has no {name}; {has}.")
    keys: list[Key] = []
    for layer, ids in json_pairs(file):
        if not re.fullmatch(r"\d+", layer) or not isinstance(ids, list):
            raise SteerlensError(f'{file} has another form than {{"layer": [ids]}}.')
        for feature in ids:
            if not isinstance(feature, int) or isinstance(feature, bool) or feature < 0:
                raise SteerlensError(f"{file}: {feature!r} in layer {layer} is no feature.")
            keys.append((int(layer), feature))
    if not keys:
        raise SteerlensError(f"{file} lists no feature.")
    _refuse_other_model(file, keys, KNOWN[config.model])
    once = list(dict.fromkeys(keys))
    return once, len(keys) - len(once)


def _has_files(config: ReferenceConfig, model: str) -> bool:
    return config.path is not None and any(
        any(Path(config.path).rglob(_file_name(model, key))) for key in ("features", *COLUMNS)
    )


def _refuse_other_model(file: Path, keys: list[Key], reference: Known) -> None:
    n_layers, d_sae = (
        entries("model")[reference.model]["n_layers"],
        entries("sae")[reference.sae]["d_sae"],
    )
    deepest, largest = max(keys), max(keys, key=lambda key: key[1])
    for (layer, feature), wrong, has in (
        (deepest, deepest[0] >= n_layers, f"{n_layers} layers"),
        (largest, largest[1] >= d_sae, f"{d_sae:,} features"),
    ):
        if wrong:
            raise SteerlensError(
                f"{file} lists layer {layer}, feature {feature}, but {reference.model} with "
                f"{reference.sae} has {has}: it is of another model."
            )


def json_pairs(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the members of the JSON object in `file`; Python would keep only the last of equal
    keys.
    """
    try:
        content = parse_json(read_text(file), object_pairs_hook=list)
    except (OSError, ValueError) as error:
        raise SteerlensError(f"{file} is no JSON file that can be read ({error}).") from error
    members = content if isinstance(content, list) else [None]
    for member in members:
        if not isinstance(member, tuple):
            raise SteerlensError(f"{file} is no JSON object.")
        yield member
