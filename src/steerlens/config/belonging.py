"""Whether what names its model belongs to the chosen one, told before anything is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from steerlens.config.entries import entries, known_models
from steerlens.config.gguf import gguf_file, model_names
from steerlens.config.overrides import override
from steerlens.config.schema import ModelConfig
from steerlens.errors import SteerlensError
from steerlens.storage.provenance import file_identity


def refuse_other_model(item: str, model_name: str, model: ModelConfig) -> None:
    """Refuse `item`, which belongs to the model `model_name`, on another `model`."""
    if not is_other_model(model_name, model_names(model)):
        return
    saes = [name for name, entry in entries("sae").items() if entry.get("model") == model.name]
    alternative = f"sae={' or sae='.join(saes)}" if saes else "sae=local sae.path=DIR"
    if item.startswith("reference."):
        alternative = "that model"
    elif item.startswith("lens."):
        alternative = f"a file of {model.title}"
    same = shlex.quote(override("model.aliases", [model_name]))
    raise SteerlensError(
        f"{item} belongs to the model {model_name}, not to {model.title}; choose "
        f"{alternative}, or if that is the same model, say so with {same}."
    )


def is_other_model(model_name: str, names: Sequence[str]) -> bool:
    """Return whether `model_name` is of another model than the one that is called `names`.

    A local folder or a repository may have any name: there, only that of another known model is.
    """
    if _short(model_name) in {_short(name) for name in names}:
        return False
    is_known = _short(model_name) in {_short(name) for name in known_models()}
    return is_known or not {"local", "hub"} & {*names}


def refuse_other_gguf(item: str, trained_on: str, model: ModelConfig, cache_dir: str) -> None:
    """Refuse `item`, trained on the GGUF with the sha256 `trained_on`, on another GGUF.

    Weights that aren't from a GGUF may be those that it was made from; they pass.
    """
    gguf = gguf_file(model)
    if gguf is None:
        return
    sha256 = file_identity(gguf, Path(cache_dir))["sha256"]
    if sha256 == trained_on:
        return
    models = [name for name, entry in entries("model").items() if entry.get("sha256") == trained_on]
    hint = f"choose model={models[0]}." if models else "give the path of that one."
    raise SteerlensError(
        f"{item} was trained on another GGUF than {gguf} (its sha256 begins with "
        f"{trained_on[:12]}, not with {sha256[:12]}); {hint}"
    )


def _short(name: str) -> str:
    """Return the name without case, organisation and the ending of a GGUF."""
    return name.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf")
