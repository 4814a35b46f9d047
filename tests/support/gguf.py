"""Tiny GGUF files by gguf's own writer, and whether the default model's wheel is here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, dequantize, quantize

from steerlens.config.compose import compose
from steerlens.config.gguf import gguf_file
from steerlens.errors import SteerlensError

N_LAYERS, N_HEADS, N_KV_HEADS, D_MODEL, D_MLP, N_CTX = 4, 4, 2, 32, 64, 64
SPECIAL = ("<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def tokens() -> list[str]:
    """Give the vocabulary: two special tokens, all bytes, what the merges make."""
    from tokenizers.pre_tokenizers import ByteLevel

    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *merged]


D_VOCAB = 2 + 256 + len(MERGES)


def write_gguf(
    file: Path,
    tensors: Mapping[str, np.ndarray] | None = None,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    tokenizer: bool = True,
    template: str | None = TEMPLATE,
    **fields: int,
) -> Path:
    """Write a GGUF with `tensors` by GGUF's names, those of two dimensions quantised to `kind`.

    `fields` are numbers of the header besides (`split__count` is `split.count`).
    """
    writer = GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(D_MODEL // N_HEADS)
    writer.add_vocab_size(D_VOCAB)
    if tokenizer:
        kinds = [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (D_VOCAB - len(SPECIAL))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens())
        writer.add_token_types(kinds)
        writer.add_token_merges(list(MERGES))
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(False)
        if template:
            writer.add_chat_template(template)
    for key, value in fields.items():
        writer.add_uint32(key.replace("__", "."), value)
    if tensors is None:
        tensors = {"token_embd.weight": np.zeros((D_VOCAB, D_MODEL), np.float32)}
    for name, values in tensors.items():
        if values.ndim == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def save_pair(
    folder: Path, architecture: str = "llama", kind: GGMLQuantizationType | None = None
) -> tuple[Path, Any]:
    """Write a random model as `folder/tiny.gguf`; give the file and the same model in Transformers.

    The model has the weights that remain of its own once they are quantised to `kind`.
    """
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    from tests.support.tiny import MODELS

    kind = kind or GGMLQuantizationType.F32
    torch.manual_seed(0)
    shape = {"vocab_size": D_VOCAB, "num_hidden_layers": N_LAYERS, "tie_word_embeddings": False}
    settings = MODELS[architecture].to_dict() | shape
    model = AutoModelForCausalLM.from_config(type(MODELS[architecture])(**settings))
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, N_LAYERS)
    tensors = {}
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        values = parameter.detach().numpy()
        if values.ndim == 2 and kind != GGMLQuantizationType.F32:
            values = dequantize(quantize(values, kind), kind)
            parameter.data = torch.from_numpy(values.copy())
        base, _, suffix = name.rpartition(".")
        tensors[f"{names.get_name(base)}.{suffix}"] = _rotated(name, values, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    file = write_gguf(folder / "tiny.gguf", tensors, architecture, kind)
    return file, model.eval()


def _rotated(name: str, values: np.ndarray, architecture: str) -> np.ndarray:
    """Order the rows of Llama's queries and keys as llama.cpp's rotary embedding reads them."""
    heads = {"q_proj.weight": N_HEADS, "k_proj.weight": N_KV_HEADS}.get(name[-13:])
    if architecture != "llama" or heads is None:
        return values
    pairs = values.reshape(heads, 2, len(values) // heads // 2, -1)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def _why_no_wheel() -> str | None:
    try:
        gguf_file(compose(["model=smollm2-135m-instruct", "sae=local", "sae.path=unused"]).model)
    except SteerlensError as error:
        return str(error)
    return None


def needs_wheel(test: Any) -> Any:
    """Mark a test that needs the default model, and skip it with the sentence that brings it."""
    reason = _why_no_wheel()
    return pytest.mark.wheel(pytest.mark.skipif(reason is not None, reason=str(reason))(test))
