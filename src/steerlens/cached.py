"""What of a run's model and SAEs is on this machine, told without torch and without a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from steerlens.catalog import read_release, releases
from steerlens.config.check import layers_with_sae, local_folder
from steerlens.config.folders import count_layers
from steerlens.config.parse import parse_layers
from steerlens.config.schema import ModelConfig, RunConfig, SaeConfig
from steerlens.errors import SteerlensError

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
"""Endings of the files that SAEs are published as."""


class CachedPart(NamedTuple):
    """What of a run needs no download."""

    config: RunConfig | None
    """The run with the layers whose SAE is here; None if the model or every SAE is missing."""
    missing: str | None
    """What is not in the hub's cache, in one clause; None if everything is."""


def cached_part(config: RunConfig) -> CachedPart:
    """Return the part of a run whose weights are in the hub's cache, or in local folders."""
    if not _has_model(config.model):
        return CachedPart(None, f"the model {config.model.path} isn't in the hub's cache")
    n_layers = count_layers(config.model)
    if config.sae.path or n_layers is None:
        return CachedPart(config, None)
    try:
        layers = parse_layers(config.layer, n_layers, config.model.late_from)
        layers = layers_with_sae(config, layers) or layers
    except SteerlensError:  # the run itself will say what is wrong
        return CachedPart(config, None)
    here = [layer for layer in layers if _has_sae(config.sae, layer)]
    absent = [str(layer) for layer in layers if layer not in here]
    if not here:
        return CachedPart(None, f"no SAE of {config.sae.title} is in the hub's cache")
    if not absent:
        return CachedPart(config, None)
    noun, verb = ("layer", "isn't") if len(absent) == 1 else ("layers", "aren't")
    missing = f"{noun} {', '.join(absent)} of {config.sae.title} {verb} in the hub's cache"
    return CachedPart(replace(config, layer=here), missing)


def ask_hub_for_nothing() -> None:
    """Keep this process from asking the hub whether what is in the cache is still the newest.

    Where there is no network, each question may take a minute to fail.
    """
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


def _snapshot(repo_id: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository's files in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _has_model(model: ModelConfig) -> bool:
    """Return whether the model is a local path, or whole in the hub's cache."""
    if local_folder(model) or Path(model.path).exists():
        return True
    folder = _snapshot(model.path, model.revision)
    if folder is None or not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.is_file():
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / file).is_file() for file in files)


def _has_sae(sae: SaeConfig, layer: int) -> bool:
    """Return whether the release's SAE of `layer` is in the hub's cache."""
    assert sae.release
    assert sae.sae_id
    repo_id, path = sae.release, sae.sae_id.replace("{layer}", str(layer))
    if sae.release in releases():
        release = read_release(sae.release)
        repo_id = release["repo_id"]
        path = next(one["path"] for one in release["saes"] if one["id"] == path)
    folder = _snapshot(repo_id)
    if folder is None:
        return False
    files = [folder / path, *(folder / path).rglob("*")]
    return any(file.suffix in WEIGHTS and file.is_file() for file in files)
