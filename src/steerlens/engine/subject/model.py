"""Loading the language model as a TransformerBridge, the way the SAE was trained on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from steerlens.config import folders
from steerlens.config.gguf import model_names
from steerlens.config.identity import model_identity
from steerlens.config.schema import ModelConfig
from steerlens.config.settings import SubjectSettings
from steerlens.engine.memory import is_out_of_memory
from steerlens.engine.subject.agreement import (
    Agreement,
    agree,
    keep_agreement,
    read_agreement,
    reference_logits,
    use_own_attention,
)
from steerlens.engine.subject.device import resolve_device, resolve_dtype
from steerlens.engine.subject.gguf import loadable
from steerlens.engine.subject.head import Head
from steerlens.engine.subject.load_errors import first_line, load_error, refuse_made_up_weights
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAEMetadata
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from steerlens.data.corpus.values import Chat

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
    agreement: Agreement = field(default_factory=lambda: Agreement(0.0))
    """How the bridge runs it, and how close its logits are to Hugging Face's."""

    @property
    def rows_from_start(self) -> bool:
        """Whether rows must be as many in all blocks, also before they differ."""
        return self.agreement.rows_from_start

    @property
    def n_layers(self) -> int:
        """Give the number of blocks."""
        return int(self.bridge.cfg.n_layers)

    @property
    def d_model(self) -> int:
        """Give the width of the residual stream."""
        return int(self.bridge.cfg.d_model)

    @property
    def dtype(self) -> torch.dtype:
        """Give the type of the weights."""
        return next(self.bridge.original_model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the embedding, where tokens go."""
        return next(self.bridge.embed.parameters()).device

    @property
    def kv_numbers(self) -> int:
        """Give how many numbers the keys and values of one position in one block are."""
        cfg = self.bridge.cfg
        return 2 * (getattr(cfg, "n_key_value_heads", None) or cfg.n_heads) * cfg.d_head

    def device_of_block(self, layer: int) -> torch.device:
        """Return the device of block `layer`."""
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

    def transcript(self, chat: Chat) -> str:
        """Render a whole chat as the template does, but for a BOS that it begins with.

        Raises:
            SteerlensError: the tokenizer has no chat template, or its template refuses the chat.
        """
        if not self.tokenizer.chat_template:
            raise SteerlensError(
                f"the corpus holds chats, and {self.name} has no chat template; choose a column of "
                "texts with corpus.column, or a model with a template."
            )
        turns = [dict(message) for message in chat]
        try:
            rendered: Any = self.tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception as error:  # whatever a template raises
            raise SteerlensError(
                f"the chat template of {self.name} can't render a chat of the corpus: "
                f"{first_line(error)}"
            ) from error
        return rendered.removeprefix(str(self.tokenizer.bos_token or ""))

    def token_name(self, token: int | None) -> str | None:
        """Give the tokenizer's own name of a token, e.g. `<bos>`; None for none."""
        return None if token is None else str(self.tokenizer.convert_ids_to_tokens(token))

    @property
    def prepended_bos(self) -> int | None:
        """Give the BOS that the tokenizer puts before a text by itself; None for none."""
        ids: Any = self.tokenizer("a")["input_ids"]
        bos: Any = self.tokenizer.bos_token_id
        return bos if ids[:1] == [bos] else None


def with_bos(ids: Sequence[int], bos: int | None) -> list[int]:
    """Return token ids after `bos`, once; as they are where that is None."""
    return [*ids] if bos is None or [*ids[:1]] == [bos] else [bos, *ids]


def count_layers(config: ModelConfig) -> int:
    """Return the number of blocks, from the entry or the model's own config, without its
    weights.
    """
    n_layers = folders.count_layers(config)
    return (
        int(_hf_config(config).get_text_config().num_hidden_layers)
        if n_layers is None
        else n_layers
    )


def load_model(settings: SubjectSettings, metadata: SAEMetadata) -> LoadedModel:
    """Load the model of `settings`, processed as `metadata` says its SAE was trained.

    Raises:
        SteerlensError: it can't be loaded, or the bridge doesn't give its logits.
    """
    silence_transformers()
    entry, cache_dir = settings.model, settings.cache_dir
    source = loadable(entry, cache_dir)
    hf_model = load_weights(settings)
    device = resolve_device(settings.device)
    tokenizer = load_tokenizer(source)
    processing = _processing(metadata)
    identity = {
        **model_identity(entry, cache_dir),
        "architecture": hf_model.config.architectures,
        "dtype": str(_dtype(settings)),
        "device": str(device),
        "processing": processing or "none",
    }
    # A GPU's arithmetic is its own.
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    key = {**identity, "device_map": settings.device_map, "chip": chip}
    agreement = read_agreement(key, cache_dir)
    reference = None if agreement else reference_logits(hf_model, tokenizer, entry.title)
    bridge, head = _bridge(hf_model, source, settings, processing)
    if reference is not None:
        agreement = agree(bridge, head, reference, bool(processing), entry.title)
        if identity.get("revision", "") is not None:  # else nothing tells this model from others
            keep_agreement(key, cache_dir, agreement)
    assert agreement is not None
    if agreement.own_attention:
        use_own_attention(bridge)
    return LoadedModel(
        bridge=bridge,
        tokenizer=tokenizer,
        head=head,
        name=entry.title,
        names=model_names(entry),
        identity=identity,
        agreement=agreement,
    )


def _bridge(
    hf_model: Any, source: ModelConfig, settings: SubjectSettings, processing: dict[str, bool]
) -> tuple[TransformerBridge, Head]:
    """Have the bridge take `hf_model` over, and process its weights.

    Raises:
        SteerlensError: it can't.
    """
    from transformer_lens.model_bridge import TransformerBridge

    from steerlens.engine.subject.adapters import register_adapters

    register_adapters()
    try:
        bridge = TransformerBridge.boot_transformers(
            source.path,
            hf_model=hf_model,
            dtype=_dtype(settings),
            revision=source.revision,
            device=None if settings.device_map else resolve_device(settings.device),
            trust_remote_code=False,
        )
        if processing:
            bridge.enable_compatibility_mode(disable_warnings=True, **processing)
        head = Head(bridge)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SteerlensError(
            f"{settings.model.title} is of type {hf_model.config.model_type}, which "
            f"TransformerLens' bridge can't take over: {type(error).__name__}: {first_line(error)}"
        ) from error
    bridge.eval()
    for parameter in bridge.original_model.parameters():
        parameter.requires_grad_(False)
    return bridge, head


def silence_transformers() -> None:
    """Leave the terminal to the run's own progress bar and errors."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _processing(metadata: SAEMetadata) -> dict[str, bool]:
    """Return how weights are folded and centred: as the SAE's training did; empty for not at
    all.
    """
    kwargs = metadata.model_from_pretrained_kwargs or {}
    chosen = {name: bool(kwargs.get(name, False)) for name in PROCESSING}
    return chosen if any(chosen.values()) else {}


def _dtype(settings: SubjectSettings) -> torch.dtype:
    return resolve_dtype(settings.dtype, settings.device, settings.device_map)


def _hf_config(entry: ModelConfig) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            entry.path, revision=entry.revision, trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:
        raise load_error(entry, error) from error


def load_weights(settings: SubjectSettings) -> Any:
    """Load the Hugging Face model of `settings`, before the bridge takes it.

    Raises:
        SteerlensError: it can't be loaded, or has weights that are NaN or infinite.
    """
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
        get_hf_model_class_for_architecture,
    )

    entry = settings.model
    source = loadable(entry, settings.cache_dir)
    hf_config = _hf_config(source)
    try:
        architecture = determine_architecture_from_hf_config(hf_config)
        model_class: Any = get_hf_model_class_for_architecture(architecture)
        hf_model, info = model_class.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=_dtype(settings),
            # The bridge hooks attention scores, which only the eager implementation has.
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            device_map=settings.device_map,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise load_error(entry, error) from error
    refuse_made_up_weights(entry.path, info)
    for name, parameter in hf_model.named_parameters():
        if not torch.isfinite(parameter.sum(dtype=torch.float32)):
            raise SteerlensError(f"the weights of {entry.path} are NaN or infinite in {name}.")
    return hf_model if settings.device_map else hf_model.to(resolve_device(settings.device))


def load_tokenizer(entry: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model `entry`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            entry.path, revision=entry.revision, trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:
        raise SteerlensError(
            f"can't load the tokenizer of {entry.path}: {first_line(error)}"
        ) from error
