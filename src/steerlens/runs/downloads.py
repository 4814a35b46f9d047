"""What of a run's model and SAEs is on this machine, told without torch and without a network."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from steerlens.config.catalog import read_release, releases
from steerlens.config.folders import count_layers
from steerlens.config.gguf import gguf_file
from steerlens.config.judge import local_model
from steerlens.config.parse import parse_layers
from steerlens.config.saes import layers_with_sae
from steerlens.config.schema import ConceptsConfig, ModelConfig, RunConfig, SaeConfig
from steerlens.config.settings import Settings, parse_subject
from steerlens.data.concept_sets.folders import holds_pairs
from steerlens.errors import SteerlensError
from steerlens.runs.subject_check import local_folder

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
"""Endings of the files that SAEs are published as."""

REACHED_WITHIN = 3.0
"""Seconds in which the hub answers where there is a way to it."""


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
        subject = parse_subject(config)
        layers = layers_with_sae(subject) or parse_layers(
            subject.layers, n_layers, config.model.late_from
        )
    except SteerlensError:  # the run itself will say what is wrong
        return CachedPart(config, None)
    cached_layers = [layer for layer in layers if _has_sae(config.sae, layer)]
    absent = [str(layer) for layer in layers if layer not in cached_layers]
    if not cached_layers:
        return CachedPart(None, f"no SAE of {config.sae.title} is in the hub's cache")
    if not absent:
        return CachedPart(config, None)
    noun, verb = ("layer", "isn't") if len(absent) == 1 else ("layers", "aren't")
    missing = f"{noun} {', '.join(absent)} of {config.sae.title} {verb} in the hub's cache"
    return CachedPart(replace(config, layer=cached_layers), missing)


class Absent(NamedTuple):
    """Something on the hub that isn't on this machine."""

    description: str
    """In words."""
    way: str
    """What to do where there is a network, so that it is here afterwards."""


def refuse_unreachable(settings: Settings) -> None:
    """Refuse what a run would download where there is no way to the hub, without torch.

    Where all is here and the hub can't be reached, this process doesn't ask it for anything.

    Raises:
        SteerlensError: something isn't here, with how to get it.
    """
    from huggingface_hub import constants

    if not _uses_hub(settings):
        return
    host = urlsplit(constants.ENDPOINT).hostname
    why = f"{host} can't be reached"
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE=1 forbids to download it"
    elif _reaches(constants.ENDPOINT):
        return
    absent = next(_absent(settings), None)
    if absent is None:
        ask_hub_for_nothing()
        return
    raise SteerlensError(
        f"{absent.description} isn't on this machine, and {why}; where there is a network, "
        f"{absent.way}."
    )


def _uses_hub(settings: Settings) -> bool:
    concepts = settings.concepts
    return (
        any(map(_is_of_hub, _models(settings)))
        or settings.subject.sae.path is None
        or settings.corpus.source == "hub"
        or (concepts is not None and concepts.source == "hub")
        or _instructions_of_hub(concepts) is not None
    )


def _models(settings: Settings) -> list[ModelConfig]:
    """Return every model that the run loads."""
    models = (settings.subject.model, settings.evaluator, local_model(settings.judge))
    return [model for model in models if model]


def _instructions_of_hub(concepts: ConceptsConfig | None) -> Absent | None:
    """Return the instructions that concepts are steered on, if they come from the hub: `datasets`
    asks it for them each time, so that they are never here.
    """
    if concepts is None or concepts.source == "embedded" or concepts.instructions_path:
        return None
    if concepts.source == "folder" and holds_pairs(Path(str(concepts.path))):
        return None
    give = "and give concepts.instructions_path"
    if concepts.instructions == "genre":
        way = "save instructions as DIR/text.jsonl, DIR/math.jsonl and DIR/code.jsonl"
        return Absent("a file of instructions for each genre", f"{way}, {give}=DIR")
    repo_id, file = "tatsu-lab/alpaca_eval", "alpaca_eval.json"
    way = f"run `hf download {repo_id} {file} --repo-type dataset --local-dir DIR`"
    return Absent(f"the file of instructions {repo_id}", f"{way}, {give}=DIR/{file}")


def _is_of_hub(model: ModelConfig) -> bool:
    return not (gguf_file(model) or local_folder(model) or Path(model.path).exists())


def _reaches(address: str) -> bool:
    """Return whether a server answers, in a few seconds, whatever it answers."""
    from huggingface_hub import get_session

    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):
            get_session().head(address, timeout=REACHED_WITHIN)
            answered.set()

    # In a thread, because looking up a name may take longer than any timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACHED_WITHIN)
    return answered.is_set()


def _absent(settings: Settings) -> Iterator[Absent]:
    """Yield what the run needs from the hub and isn't here."""
    from huggingface_hub import constants

    copy = "copy its cache (here {}) and set HF_HUB_OFFLINE=1"
    copy_hub = copy.format(constants.HF_HUB_CACHE)
    subject = settings.subject
    for model in _models(settings):
        if not _has_model(model):
            way = f"run `hf download {model.path}`, {copy_hub}"
            yield Absent(f"the model {model.path}", way)
    n_layers = count_layers(subject.model)
    if subject.sae.path is None and n_layers is not None:
        layers = layers_with_sae(subject) or parse_layers(
            subject.layers, n_layers, subject.model.late_from
        )
        for layer in layers:
            if not _has_sae(subject.sae, layer):
                repo_id, path = _place_of_sae(subject.sae, layer)
                description = f"the SAE of layer {layer} of {subject.sae.name}"
                yield Absent(
                    description, f"run `hf download {repo_id} --include '{path}*'`, {copy_hub}"
                )
    datasets = Path(os.environ.get("HF_DATASETS_CACHE") or f"{constants.HF_HOME}/datasets")
    if settings.corpus.source == "hub" and settings.reads_corpus:
        repo_id = str(settings.corpus.path)
        if not _has_data(repo_id, datasets):
            download = f"`hf download {repo_id} --repo-type dataset --local-dir DIR`"
            read = "read a file of DIR with corpus=parquet|json|text corpus.path=FILE"
            yield Absent(f"the corpus {repo_id}", f"run {download}, and {read}")
    if settings.concepts is not None and settings.concepts.source == "hub":
        repo_id = str(settings.concepts.path)
        if not _has_data(repo_id, datasets):
            way = f"begin the same run, {copy.format(datasets)}"
            yield Absent(f"the concept set {repo_id}", way)
    if instructions := _instructions_of_hub(settings.concepts):
        yield instructions


def _has_data(repo_id: str, cache: Path) -> bool:
    """Return whether `datasets` has something of a data set in its `cache`."""
    return (cache / repo_id.replace("/", "___")).is_dir()


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
    if not _is_of_hub(model):
        return True
    folder = _snapshot(model.path, model.revision)
    if folder is None or not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.is_file():
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / file).is_file() for file in files)


def _place_of_sae(sae: SaeConfig, layer: int) -> tuple[str, str]:
    """Return the repository of the release's SAE of `layer`, and its folder or file there."""
    assert sae.release
    assert sae.sae_id
    repo_id, path = sae.release, sae.sae_id.replace("{layer}", str(layer))
    if sae.release in releases():
        release = read_release(sae.release)
        repo_id = release["repo_id"]
        path = next(sae["path"] for sae in release["saes"] if sae["id"] == path)
    return repo_id, path


def _has_sae(sae: SaeConfig, layer: int) -> bool:
    """Return whether the release's SAE of `layer` is in the hub's cache."""
    repo_id, path = _place_of_sae(sae, layer)
    folder = _snapshot(repo_id)
    if folder is None:
        return False
    files = [folder / path, *(folder / path).rglob("*")]
    return any(file.suffix in WEIGHTS and file.is_file() for file in files)
