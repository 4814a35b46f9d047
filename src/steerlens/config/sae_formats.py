"""The formats in which folders hold SAEs, each told in the words of SAELens' config.

Besides SAELens' own: EleutherAI's sparsify, dictionary_learning, and Gemma Scope's arrays.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steerlens.config.hooks import bridge_hook
from steerlens.errors import SteerlensError
from steerlens.storage.files import read_json_object

SAE_CONFIG = "cfg.json"  # SAELens' own names
SAE_WEIGHTS = "sae_weights.safetensors"
SPARSIFY_WEIGHTS = "sae.safetensors"
DICTIONARY_WEIGHTS, DICTIONARY_CONFIG = "ae.pt", "config.json"
GEMMA_SCOPE_WEIGHTS = "params.npz"
KEY = "sae.path"


def weights_file(folder: Path) -> Path | None:
    """Give the file of weights of the SAE in `folder`, whose name tells the format; None without.

    A folder with several, such as one that was converted in place, is read in SAELens' format.
    """
    return next((folder / name for name in CONFIGS if (folder / name).is_file()), None)


def sae_config(folder: Path) -> dict[str, Any]:
    """Give the config of the SAE in `folder`, as SAELens would have written it.

    What a cfg.json beside the weights says of hook and model goes before what their place tells.

    Raises:
        SteerlensError: its config lacks something, or means an SAE that isn't loaded.
    """
    file = weights_file(folder)
    return CONFIGS[file.name if file else SAE_WEIGHTS](folder)


def _saelens(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / SAE_CONFIG, KEY)


def _sparsify(folder: Path) -> dict[str, Any]:
    """Return of `LAYERS.N/cfg.json`, named like the module; what was trained on is in the
    parent's.
    """
    cfg = read_json_object(folder / SAE_CONFIG, KEY)
    for setting in ("transcode", "skip_connection", "signed"):
        if cfg.get(setting):
            raise _not_loaded(folder, "sparsify", f"{setting}=true")
    if cfg.get("activation", "topk") != "topk":
        raise _not_loaded(folder, "sparsify", f"activation={cfg['activation']}")
    run = folder.parent / "config.json"
    training = read_json_object(run, KEY) if run.is_file() else {}
    d_in = _size(cfg, "d_in", folder)
    latents = cfg.get("num_latents") or d_in * _size(cfg, "expansion_factor", folder)
    metadata = {"hook_name": bridge_hook(folder.name), "model_name": training.get("model")}
    return {
        **_config("topk", d_in, int(latents), {**metadata, **_model_and_hook(cfg)}),
        "k": _size(cfg, "k", folder),
        "apply_b_dec_to_input": True,
    }


DICTIONARIES = {
    "AutoEncoder": "standard",
    "AutoEncoderTopK": "topk",
    "GatedAutoEncoder": "gated",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
}
"""The classes of dictionary_learning that are loaded, and what they are in SAELens: those with one
threshold for all features have it as JumpReLU."""

SUBMODULES = {
    "resid_post": "hook_resid_post",
    "attention_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}


def _dictionary_learning(folder: Path) -> dict[str, Any]:
    """Return of `config.json` with `trainer` and `buffer`."""
    cfg = read_json_object(folder / DICTIONARY_CONFIG, KEY)
    trainer, buffer = cfg.get("trainer"), cfg.get("buffer") or {}
    if not isinstance(trainer, Mapping) or not isinstance(buffer, Mapping):
        raise SteerlensError(f"{KEY}: {folder / DICTIONARY_CONFIG} has no trainer and buffer.")
    kind = str(trainer.get("dict_class"))
    if kind not in DICTIONARIES:
        raise _not_loaded(folder, "dictionary_learning", f"dict_class={kind}")
    if buffer.get("io", "out") != "out":
        raise _not_loaded(folder, "dictionary_learning", f"io={buffer['io']}")
    submodule = str(trainer.get("submodule_name") or "resid_post")
    hook = next((hook for name, hook in SUBMODULES.items() if submodule.startswith(name)), None)
    if hook is None:
        raise _not_loaded(folder, "dictionary_learning", f"submodule_name={submodule}")
    metadata = {
        "hook_name": f"blocks.{_size(trainer, 'layer', folder)}.{hook}",
        "model_name": trainer.get("lm_name"),
    }
    d_in, d_sae = (_size(trainer, name, folder) for name in ("activation_dim", "dict_size"))
    beside = folder / SAE_CONFIG
    buffer_facts = _model_and_hook(read_json_object(beside, KEY)) if beside.is_file() else {}
    return {
        **_config(DICTIONARIES[kind], d_in, d_sae, {**metadata, **buffer_facts}),
        **({"k": _size(trainer, "k", folder)} if DICTIONARIES[kind] == "topk" else {}),
        "apply_b_dec_to_input": kind != "JumpReluAutoEncoder",
    }


GEMMA_SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def _gemma_scope(folder: Path) -> dict[str, Any]:
    """Return of arrays alone:
    `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz`.
    """
    file = folder / GEMMA_SCOPE_WEIGHTS
    path = folder.resolve().as_posix()
    repository = re.search(r"/gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)\b", path)
    layer = re.search(r"/layer_(\d+)/", f"{path}/")
    metadata: dict[str, Any] = {"prepend_bos": True}
    if repository and layer:
        size, tuned, site = repository.groups()
        metadata["hook_name"] = f"blocks.{layer[1]}.{GEMMA_SITES[site]}"
        metadata["model_name"] = f"gemma-2-{size}{'-it' if tuned == 'it' else ''}"
    beside = folder / SAE_CONFIG
    metadata |= _model_and_hook(read_json_object(beside, KEY)) if beside.is_file() else {}
    if not metadata.get("hook_name"):
        number = layer[1] if layer else 20
        raise SteerlensError(
            f"{KEY}: {file} is of Gemma Scope, whose params.npz don't say model and hook; write "
            f'{{"hook_name": "blocks.{number}.hook_resid_post"}} into {folder / SAE_CONFIG}, keep '
            "it below a folder named like its repository (gemma-scope-2b-pt-res/layer_20/...), or "
            "choose it from the hub with sae=gemma-scope-2b-res."
        )
    d_sae, d_in = _shape(file, "W_dec")
    return {**_config("jumprelu", d_in, d_sae, metadata), "apply_b_dec_to_input": False}


def _shape(file: Path, name: str) -> tuple[int, int]:
    """Return the shape of an array in a .npz file, without its numbers."""
    from numpy.lib import format as npy

    try:
        with zipfile.ZipFile(file).open(f"{name}.npy") as stream:
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            rows, columns = read(stream)[0]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SteerlensError(
            f"{KEY}: {file} is truncated or has no matrix {name}; copy it again."
        ) from error
    return rows, columns


CONFIGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    SAE_WEIGHTS: _saelens,
    SPARSIFY_WEIGHTS: _sparsify,
    DICTIONARY_WEIGHTS: _dictionary_learning,
    GEMMA_SCOPE_WEIGHTS: _gemma_scope,
}
"""By the name of a format's weights."""


def _config(
    architecture: str, d_in: int, d_sae: int, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    facts = {key: value for key, value in metadata.items() if value is not None}
    # Of version 6, so that SAELens takes it as it is; not trained by SAELens.
    versions = {"sae_lens_version": "6.0.0", "sae_lens_training_version": None}
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
        "metadata": {**versions, **facts},
    }


def _model_and_hook(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a cfg.json says of an SAE's place, at its top or in its metadata."""
    everything = {**config, **(config.get("metadata") or {})}
    return {key: everything[key] for key in ("hook_name", "model_name") if key in everything}


def _size(config: Mapping[str, Any], name: str, folder: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SteerlensError(f"{KEY}: the config in {folder} has no number {name}.")
    return value


def _not_loaded(folder: Path, library: str, setting: str) -> SteerlensError:
    return SteerlensError(
        f"{KEY}: {folder} is an SAE of {library} with {setting}, which isn't loaded; convert it to "
        "SAELens' format (sae_lens' SAE.save_model)."
    )
