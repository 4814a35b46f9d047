"""Loading the language model as a TransformerBridge, the way the SAE was trained on it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steerlens.config import folders
from steerlens.config.schema import ModelConfig, RunConfig
from steerlens.errors import SteerlensError
from steerlens.provenance import folder_identity, hub_revision
from steerlens.subject.device import resolve_device, resolve_dtype
from steerlens.subject.head import Head, checked_head

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAEMetadata
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

# Weight processing that SAELens' metadata may name (TransformerLens' from_pretrained options).
PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


@dataclass
class LoadedModel:
    """A language model, ready to run with hooks."""

    bridge: TransformerBridge
    tokenizer: PreTrainedTokenizerBase
    """As the model's authors ship it; the bridge's own copy has its BOS behaviour changed."""
    head: Head
    name: str
    names: tuple[str, ...] = ()
    """All names by which others may call it, its own first."""
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return int(self.bridge.cfg.n_layers)

    @property
    def d_model(self) -> int:
        return int(self.bridge.cfg.d_model)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.bridge.original_model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where tokens go."""
        return next(self.bridge.embed.parameters()).device

    def device_of_block(self, layer: int) -> torch.device:
        return next(self.bridge.blocks[layer].parameters()).device

    def chat(self, request: str) -> str:
        """Render `request` as the user's turn, and the beginning of the model's.

        Raises:
            SteerlensError: if the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise SteerlensError(
                f"{self.name} has no chat template; use chat_template=false instead."
            )
        turns = [{"role": "user", "content": request}]
        rendered: Any = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        return rendered

    @property
    def tokenizer_prepends_bos(self) -> bool:
        ids = self.tokenizer("a")["input_ids"]
        return self.tokenizer.bos_token_id is not None and ids[:1] == [self.tokenizer.bos_token_id]


def count_layers(config: ModelConfig) -> int:
    """Number of blocks, from the entry or the model's own config, without its weights."""
    known = folders.count_layers(config)
    return int(_hf_config(config).get_text_config().num_hidden_layers) if known is None else known


def load_model(config: RunConfig, metadata: SAEMetadata) -> LoadedModel:
    """The model of `config`, processed as `metadata` says its SAE was trained."""
    from transformer_lens.model_bridge import TransformerBridge

    silence_transformers()
    entry = config.model
    hf_model = load_weights(config)
    tokenizer = load_tokenizer(entry)
    bridge = TransformerBridge.boot_transformers(
        entry.path,
        hf_model=hf_model,
        dtype=resolve_dtype(config),
        revision=entry.revision,
        device=None if config.device_map else resolve_device(config),
        trust_remote_code=False,
    )
    processing = _process(bridge, metadata)
    bridge.eval()
    for parameter in bridge.original_model.parameters():
        parameter.requires_grad_(False)
    local = Path(entry.path)
    where = (
        folder_identity(local, Path(config.paths.cache_dir))
        if local.is_dir()
        else {"repo_id": entry.path, "revision": hub_revision(entry.path, entry.revision)}
    )
    return LoadedModel(
        bridge=bridge,
        tokenizer=tokenizer,
        head=checked_head(bridge),
        name=entry.name,
        names=(entry.name, entry.path, *entry.aliases),
        identity={
            **where,
            "architecture": hf_model.config.architectures,
            "dtype": str(resolve_dtype(config)),
            "device": str(resolve_device(config)),
            "processing": processing,
        },
    )


def silence_transformers() -> None:
    """The terminal belongs to the run's own progress bar and errors."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _process(bridge: TransformerBridge, metadata: SAEMetadata) -> dict[str, Any] | str:
    """Folds and centres weights exactly as far as the SAE's training did; returns what was done."""
    kwargs = metadata.model_from_pretrained_kwargs or {}
    chosen = {name: bool(kwargs.get(name, False)) for name in PROCESSING}
    if not any(chosen.values()):
        return "none"
    bridge.enable_compatibility_mode(disable_warnings=True, **chosen)
    return chosen


def _hf_config(entry: ModelConfig) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            entry.path, revision=entry.revision, trust_remote_code=False
        )
    except Exception as error:
        raise load_error(entry, error) from error


def load_weights(config: RunConfig) -> Any:
    """The Hugging Face model of `config`, before the bridge takes it."""
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
        get_hf_model_class_for_architecture,
    )

    entry = config.model
    hf_config = _hf_config(entry)
    try:
        architecture = determine_architecture_from_hf_config(hf_config)
        model_class: Any = get_hf_model_class_for_architecture(architecture)
        hf_model, info = model_class.from_pretrained(
            entry.path,
            revision=entry.revision,
            dtype=resolve_dtype(config),
            # The bridge hooks attention scores, which only the eager implementation has.
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            device_map=config.device_map,
            output_loading_info=True,
        )
    except Exception as error:
        raise load_error(entry, error) from error
    # Transformers would fill these in at random and only warn.
    for problem in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(problem) or ())
        if keys:
            raise SteerlensError(
                f"the weights of {entry.path} don't fit its config.json: {problem.split('_')[0]} "
                f"{keys[0]}" + (f" and {len(keys) - 1} more." if len(keys) > 1 else ".")
            )
    for name, parameter in hf_model.named_parameters():
        if not torch.isfinite(parameter.sum(dtype=torch.float32)):
            raise SteerlensError(f"the weights of {entry.path} are NaN or infinite in {name}.")
    return hf_model if config.device_map else hf_model.to(resolve_device(config))


def load_tokenizer(entry: ModelConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            entry.path, revision=entry.revision, trust_remote_code=False
        )
    except Exception as error:
        raise SteerlensError(
            f"can't load the tokenizer of {entry.path}: {_first_line(error)}"
        ) from error


def load_error(entry: ModelConfig, error: Exception) -> SteerlensError:
    text = str(error)
    if "gated" in text.lower() or "401" in text or "403" in text:
        page = entry.license_url or f"the page of {entry.path}"
        return SteerlensError(
            f"the weights of {entry.path} are gated: accept the licence at {page}, then set the "
            "environment variable HF_TOKEN to your Hugging Face token."
        )
    return SteerlensError(
        f"can't load the model {entry.path}: {type(error).__name__}: {_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
