"""Local folders of models and SAEs: what they must hold, seen without loading any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from steerlens.config.gguf import converted_folder, gguf_file, read_header
from steerlens.config.hooks import layer_of_hook
from steerlens.config.sae_formats import SAE_CONFIG, SAE_WEIGHTS, sae_config, weights_file
from steerlens.config.schema import ModelConfig
from steerlens.config.shipped import missing_release
from steerlens.errors import SteerlensError
from steerlens.storage.files import has_byte_order_mark, read_json_object
from steerlens.storage.provenance import file_identity

TOKENIZER = "tokenizer.json"
GGUF_KEYS = {"n_layers": "block_count", "d_model": "embedding_length", "n_ctx": "context_length"}
"""What GGUF calls facts of a model."""


def check_model_folder(folder: Path, key: str) -> None:
    """Refuse a folder, given as `key`, that isn't a whole model in the Hugging Face layout."""
    if not folder.is_dir():
        raise SteerlensError(f"{key}: there is no folder {folder}.")
    read_json_object(folder / "config.json", key)
    for file in sorted(folder.glob("*.json")):
        if has_byte_order_mark(file):
            raise SteerlensError(
                f"{key}: {file} begins with a byte order mark, which Transformers can't read; save "
                "it as UTF-8 without BOM."
            )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        only = " (only .bin files, which are not read)" if list(folder.glob("*.bin")) else ""
        raise SteerlensError(f"{key}: {folder} has no weights, *.safetensors{only}.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json_object(index, key).get("weight_map", {}).values()
        for name in sorted(set(shards) - {file.name for file in files}):
            raise SteerlensError(f"{key}: {folder} lacks {name}, one of its weight files.")
    for file in files:
        tensor_shapes(file)


def model_fact(model: ModelConfig, field: str, *keys: str) -> int | None:
    """Return `model.FIELD`, or what its GGUF or the first of `keys` in its folder's config.json
    says; None if nothing does.
    """
    value = getattr(model, field, None)
    if value is not None:
        return value
    if gguf := gguf_file(model):
        return read_header(gguf).of_architecture(GGUF_KEYS[field])
    file = Path(model.path) / "config.json"
    if not file.is_file():
        return None
    config = read_json_object(file, "model.path")
    config = config.get("text_config") or config  # models that read images too
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int)), None)


def count_layers(model: ModelConfig) -> int | None:
    """Return the number of the model's blocks, if anything tells before it is downloaded."""
    return model_fact(model, "n_layers", "num_hidden_layers", "n_layer", "num_layers")


def vocabulary_size(model: ModelConfig) -> int | None:
    """Return the number of the model's tokens, if anything tells before it is downloaded."""
    if model.d_vocab is None and (gguf := gguf_file(model)):
        return read_header(gguf).fields.get("tokenizer.ggml.tokens")  # of an array the length
    return model_fact(model, "d_vocab", "vocab_size")


def tokenizer_file(model: ModelConfig, cache_dir: Path) -> Path | None:
    """Return the model's `tokenizer.json`, which is read without torch, if it is on this machine.

    Of a GGUF it is that of the converted copy, if that has been made.
    """
    if gguf := gguf_file(model):
        sha256 = file_identity(gguf, cache_dir)["sha256"]
        folder = converted_folder(sha256, cache_dir)
    else:
        folder = Path(model.path)
    file = folder / TOKENIZER
    if file.is_file():
        return file
    if folder.exists() or gguf:
        return None
    from huggingface_hub import try_to_load_from_cache

    in_hub = try_to_load_from_cache(model.path, TOKENIZER, revision=model.revision)
    return Path(in_hub) if isinstance(in_hub, str) else None


def has_chat_template(model: ModelConfig) -> bool | None:
    """Tell whether the tokenizer of a local model has a chat template; None for one on the hub."""
    if gguf := gguf_file(model):
        return "tokenizer.chat_template" in read_header(gguf).fields
    folder = Path(model.path)
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    # Transformers' names of the files, since templates have some of their own.
    return (
        "chat_template" in read_json_object(config, "model.path")
        or (folder / "chat_template.jinja").is_file()
        or (folder / "additional_chat_templates").is_dir()
    )


def sae_folders(folder: Path) -> list[Path]:
    """Return the folders of the SAEs in `folder`: itself, or its sub-folders; each is checked."""
    if not folder.is_dir():
        refusal = SteerlensError(f"sae.path: there is no folder {folder}.")
        raise missing_release(folder) or refusal
    inside = sorted(child for child in folder.iterdir() if child.is_dir())
    folders = [folder] if _holds_sae(folder) else [child for child in inside if _holds_sae(child)]
    if not folders:
        raise SteerlensError(
            f"sae.path: {folder} holds no SAE; {SAE_CONFIG} and {SAE_WEIGHTS} are expected in it, "
            "or in one sub-folder per layer."
        )
    for sae_folder in folders:
        weights = weights_file(sae_folder)
        if weights is None:
            raise SteerlensError(f"sae.path: {sae_folder} has no weights, {SAE_WEIGHTS}.")
        if weights.suffix == ".safetensors":
            tensor_shapes(weights)
    return folders


def _holds_sae(folder: Path) -> bool:
    return (folder / SAE_CONFIG).is_file() or weights_file(folder) is not None


class SaeFacts(NamedTuple):
    """What an SAE's cfg.json tells; None where it doesn't."""

    layer: int | None
    d_in: int | None
    """None also where it isn't the width of the residual stream."""
    d_sae: int | None
    model_name: str | None
    gguf_sha256: str | None
    """Of the GGUF that it was trained on."""


def sae_facts(folder: Path) -> SaeFacts:
    """Return the facts of the SAE in `folder`."""
    config = sae_config(folder)
    metadata = {**config, **(config.get("metadata") or {})}  # older SAELens: all in one
    hook_name = str(metadata.get("hook_name") or metadata.get("hook_point") or "")
    reads_z = hook_name.endswith("hook_z")
    d_in, d_sae = config.get("d_in"), config.get("d_sae")
    for name, size in (("d_in", d_in), ("d_sae", d_sae)):
        if isinstance(size, int) and size < 1:
            raise SteerlensError(f"the SAE {folder} has {name}={size}, which must be at least 1.")
    if config.get("k") is not None:
        check_k(config["k"], d_sae if isinstance(d_sae, int) else None, f"the SAE {folder}")
    return SaeFacts(
        layer=layer_of_hook(hook_name),
        # SAEs of the heads' outputs don't read the residual stream.
        d_in=d_in if isinstance(d_in, int) and not reads_z else None,
        d_sae=d_sae if isinstance(d_sae, int) else None,
        model_name=str(metadata.get("model_name") or "") or None,
        gguf_sha256=metadata.get("gguf_sha256"),
    )


def check_k(k: Any, d_sae: int | None, sae: str) -> None:
    """Refuse a number of active features, `k`, that the SAE named `sae` can't have."""
    is_number = isinstance(k, int | float) and not isinstance(k, bool)
    if not is_number or not 0 < k <= (k if d_sae is None else d_sae):
        most = "" if d_sae is None else f" to d_sae={d_sae}"
        raise SteerlensError(f"{sae} has k={k!r}, which must be a number from 1{most}.")


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Read the shapes of the tensors in a safetensors file, by name, without the tensors.

    Raises:
        SteerlensError: it is another file, or shorter than its own header says: a download or copy
            that broke off.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise SteerlensError(
            f"{file} is truncated or no safetensors file; copy it again."
        ) from error
