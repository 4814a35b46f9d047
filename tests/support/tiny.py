"""Tiny randomly initialised models and SAEs, saved in the layouts that users have."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    GptOssConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3MoeConfig,
    XGLMConfig,
)
from transformers.models.gemma3 import Gemma3TextConfig

D_MODEL, N_LAYERS, D_VOCAB, D_SAE = 32, 4, 211, 48
WORDS = ("From", "In", "my", "experience", ",", ".", "the", "Note", "that")
PROMPT = "From my experience, the w20"
N_TOKENS = {"qwen2": 8}
"""Of `PROMPT`, without BOS; a Qwen2 tokenizer splits numbers. All others: `N_WORDS`."""
N_WORDS = 6

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
OF_GPT2: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FALCON: dict[str, Any] = {
    name: value for name, value in SHARED.items() if name != "intermediate_size"
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
    "gpt2": GPT2Config(**OF_GPT2),
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
MENDED: dict[str, Any] = {
    "bloom": BloomConfig(vocab_size=D_VOCAB, hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=4),
    "cohere": CohereConfig(**SHARED, num_key_value_heads=2, logit_scale=0.25, pad_token_id=1),
    "cohere_qk_norm": CohereConfig(
        **SHARED, num_key_value_heads=2, pad_token_id=1, use_qk_norm=True
    ),
    "falcon_alibi": FalconConfig(**FALCON, alibi=True, multi_query=False),
    "falcon_new": FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "falcon_old": FalconConfig(**FALCON, multi_query=True),
    "gpt_bigcode": GPTBigCodeConfig(**OF_GPT2),
    "hunyuan": HunYuanDenseV1Config(**SHARED, num_key_value_heads=2, head_dim=8, pad_token_id=1),
    "mpt": MptConfig(vocab_size=D_VOCAB, d_model=D_MODEL, n_layers=N_LAYERS, n_heads=4),
    "opt": OPTConfig(**SHARED, ffn_dim=64, word_embed_proj_dim=D_MODEL, pad_token_id=1),
    "phi_qk_norm": PhiConfig(**SHARED, qk_layernorm=True, pad_token_id=1),
    "xglm": XGLMConfig(
        vocab_size=D_VOCAB,
        d_model=D_MODEL,
        ffn_dim=64,
        num_layers=N_LAYERS,
        attention_heads=4,
        max_position_embeddings=64,
    ),
}
"""Types that the bridge alone gets wrong or can't expand, by what they are called in tests."""
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


def save_byte_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of Qwen2's class: AutoTokenizer takes any tokenizer of such a
    model for one. The words of `WORDS`, with and without a space, are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    often = [" ".join((*WORDS, "w")), *WORDS] * 99
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB,
        special_tokens=["<bos>", "<eos>", "<unk>"],
        initial_alphabet=[*string.ascii_letters, *string.digits, *string.punctuation],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*often, __doc__ or "", *MODELS, *MENDED, *SMALL], trainer)
    bpe = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in bpe["merges"]]
    Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=merges,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<eos>",
    ).save_pretrained(folder)


def save_model(folder: Path, kind: str = "llama", seed: int = 0, **settings: Any) -> Path:
    """A random model of `kind` with its tokenizer, in the Hugging Face layout.

    `settings` go into its config. What AutoTokenizer makes of it splits `PROMPT` as it should.
    """
    torch.manual_seed(seed)
    whole = {**MODELS, **MENDED}[kind]
    config = type(whole)(**{**whole.to_dict(), **settings})
    model = AutoModelForCausalLM.from_config(config)
    noise = 0.1 * D_MODEL / config.hidden_size  # or wide models are all but certain of a token
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    model.save_pretrained(folder)
    if kind == "qwen2":
        save_byte_tokenizer(folder)
    else:
        save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.tokenize(PROMPT)
    assert len(tokens) == N_TOKENS.get(kind, N_WORDS), tokens
    assert len(tokenizer) == D_VOCAB
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
