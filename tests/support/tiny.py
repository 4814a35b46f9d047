"""Tiny randomly initialised models and SAEs, saved in the layouts that users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.gemma3 import Gemma3TextConfig

D_MODEL, N_LAYERS, D_VOCAB, D_SAE = 32, 4, 211, 48
WORDS = ("From", "In", "my", "experience", ",", ".", "the", "Note", "that")

UNEMBEDDINGS = (
    *("lm_head.weight", "embed_out.weight", "model.embed_tokens.weight", "transformer.wte.weight"),
)
"""What the unembedding of the types below is called."""

SHARED: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, Any] = {
    "llama": LlamaConfig(**SHARED, num_key_value_heads=2, tie_word_embeddings=False),
    "gemma2": Gemma2Config(
        **SHARED,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=3,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
    ),
    "neox": GPTNeoXConfig(**SHARED),
    "gpt2": GPT2Config(
        vocab_size=D_VOCAB,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "qwen2": Qwen2Config(**SHARED, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SHARED, num_key_value_heads=2, head_dim=8),
    "gemma3": Gemma3TextConfig(
        **SHARED,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=3,
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **SHARED,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    ),
    "gpt_oss": GptOssConfig(
        **SHARED,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=3,
    ),
}
SMALL: dict[str, Any] = {
    **SHARED,
    "d_model": D_MODEL,
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_layers": N_LAYERS,
    "num_layers": N_LAYERS,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "ffn_dim": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64,
    "pad_token_id": 1,
}
"""What makes a config of any type small, as far as the type has it."""
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
OTHERS: dict[str, dict[str, Any]] = {
    "abstopk": {"k": 6},
    "matching_pursuit": {"max_iterations": 4},
    "temporal": {"n_heads": 2, "bottleneck_factor": 8, "kval_topk": 6},
}
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def save_tokenizer(folder: Path, prepends_bos: bool = True) -> None:
    """A word-level tokenizer; with a BOS post-processor when asked."""
    vocab = {"<bos>": 0, "<eos>": 1, "<unk>": 2}
    for word in WORDS:
        vocab[word] = len(vocab)
    while len(vocab) < D_VOCAB:
        vocab[f"w{len(vocab)}"] = len(vocab)
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if prepends_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 0)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<eos>",
    ).save_pretrained(folder)


def save_model(folder: Path, kind: str = "llama", seed: int = 0, **settings: Any) -> Path:
    """A random model of `kind` with its tokenizer, in the Hugging Face layout.

    `settings` go into its config.
    """
    torch.manual_seed(seed)
    config = type(MODELS[kind])(**{**MODELS[kind].to_dict(), **settings})
    model = AutoModelForCausalLM.from_config(config)
    noise = 0.1 * D_MODEL / config.hidden_size  # or wide models are all but certain of a token
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def make_decided(model: Path, times: float = 2.5) -> Path:
    """Makes a random model's next-token distributions steep, so that it has output features."""
    from safetensors.torch import load_file, save_file

    file = model / "model.safetensors"
    weights = load_file(file)
    unembedding = next(name for name in UNEMBEDDINGS if name in weights)
    weights[unembedding] *= times
    save_file(weights, file, metadata={"format": "pt"})
    return model


def save_sae(
    folder: Path,
    architecture: str = "standard",
    layer: int = 2,
    site: str = "resid_post",
    seed: int = 1,
    metadata: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A random SAE in the SAELens layout; `settings` go into its config."""
    from sae_lens import SAE

    torch.manual_seed(seed)
    extra = {"k": 6} if architecture == "topk" else OTHERS.get(architecture, {})
    if architecture in TRANSCODERS:
        extra = {"apply_b_dec_to_input": False, "d_out": D_MODEL}
        metadata = {"hook_name_out": f"blocks.{layer}.hook_mlp_out", **(metadata or {})}
    sae = SAE.from_dict(
        {
            "architecture": architecture,
            "d_in": D_MODEL,
            "d_sae": D_SAE,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "metadata": {
                "model_name": "tiny",
                "hook_name": f"blocks.{layer}.{site if '.' in site else f'hook_{site}'}",
                "prepend_bos": True,
                **(metadata or {}),
            },
            **extra,
            **settings,
        }
    )
    for name, parameter in sae.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.data = noise.abs() * 0.05 if name == "threshold" else noise * 0.3
    sae.save_model(folder)
    return folder
