"""Caches of the hub, filled with random weights in the layouts of the repositories they stand for.

Each function that saves an SAE takes its repository's folder and its path in it, and returns the
weights that SAELens must find there, under SAELens' names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import D_MODEL, D_SAE, save_sae

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Weights = dict[str, torch.Tensor]


@contextmanager
def snapshot(cache: Path, repo_id: str) -> Iterator[Path]:
    """The folder of a repository's only snapshot in the hub's cache.

    When the block ends, the files in it become links to blobs, as the hub's client leaves them.
    """
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    folder, blobs = repo / "snapshots" / COMMIT, repo / "blobs"
    for new in (repo / "refs", blobs, folder):
        new.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    yield folder
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        name = file.relative_to(folder).as_posix()
        blob = file.rename(blobs / hashlib.sha256(name.encode()).hexdigest())
        file.symlink_to(os.path.relpath(blob, file.parent))


def random_weights(d_in: int = D_MODEL, d_sae: int = D_SAE, seed: int = 1) -> Weights:
    """`W_enc` (D, F), `W_dec` (F, D), `b_enc` (F), `b_dec` (D)."""
    torch.manual_seed(seed)
    return {
        "W_enc": torch.randn(d_in, d_sae) / d_in**0.5,
        "W_dec": torch.nn.functional.normalize(torch.randn(d_sae, d_in)),
        "b_enc": 0.1 * torch.randn(d_sae),
        "b_dec": 0.1 * torch.randn(d_in),
    }


def save_saelens(folder: Path, path: str, **settings: Any) -> Weights:
    """SAELens' own format; `settings` as for `tests.support.tiny.save_sae`."""
    return load_file(save_sae(folder / path, **settings) / "sae_weights.safetensors")


def save_saelens_5(folder: Path, path: str, model_name: str, hook_name: str) -> Weights:
    """SAELens' format before version 6: one flat config, and how often each feature fires."""
    weights = save_saelens(folder, path)
    save_file({"sparsity": torch.full((D_SAE,), -3.0)}, folder / path / "sparsity.safetensors")
    config = {
        "model_name": model_name,
        "hook_point": hook_name,
        "hook_point_head_index": None,
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cuda",
        "activation_fn_str": "relu",
        "normalize_activations": False,
        "context_size": 128,
    }
    _write(folder / path / "cfg.json", config)
    return weights


def save_gemma_scope(folder: Path, path: str, d_in: int = 2304, d_sae: int = 16384) -> Weights:
    """Gemma Scope: nothing but arrays; the true sizes are SAELens' knowledge."""
    weights = {**random_weights(d_in, d_sae), "threshold": 1 + torch.rand(d_sae)}
    (folder / path).mkdir(parents=True)
    arrays: dict[str, Any] = {name: weight.numpy() for name, weight in weights.items()}
    np.savez(folder / path / "params.npz", **arrays)
    return weights


def save_gemma_scope_2(folder: Path, path: str, model_name: str) -> Weights:
    """Gemma Scope 2: safetensors, and a config that doesn't say the sizes."""
    weights = {**random_weights(), "threshold": torch.rand(D_SAE)}
    config: dict[str, Any] = {"architecture": "jump_relu", "model_name": model_name}
    named = {name.lower(): weight for name, weight in weights.items()}
    if path.endswith("_affine"):
        named["affine_skip_connection"] = torch.randn(D_MODEL, D_MODEL) / D_MODEL
        weights["W_skip"] = named["affine_skip_connection"].T.contiguous()
        config["affine_connection"] = True
    _write(folder / path / "config.json", config)
    save_file(named, folder / path / "params.safetensors")
    return weights


def save_qwen_scope(folder: Path, path: str, d_in: int = 2048, d_sae: int = 32768) -> Weights:
    """Qwen-Scope: one file of torch's for each layer; the true sizes are SAELens' knowledge."""
    weights = random_weights(d_in, d_sae)
    saved = {name: w.T.contiguous() if w.ndim == 2 else w for name, w in weights.items()}
    torch.save(saved, folder / path)
    return weights


def save_llama_scope(folder: Path, path: str, layer: int, scale: float) -> Weights:
    """Llama Scope: bfloat16 weights of activations that are multiplied by `scale` before.

    SAELens knows each SAE's scale, too, and folds it into the weights.
    """
    d_norm = D_MODEL**0.5 / scale
    config = {
        "hook_point_in": f"blocks.{layer}.hook_resid_post",
        "hook_point_out": f"blocks.{layer}.hook_resid_post",
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.2021484375,
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "top_k": 50,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": d_norm, "out": d_norm},
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
    }
    _write(folder / path / "hyperparams.json", config)
    _write(folder / path / "lm_config.json", {"model_name": "meta-llama/Llama-3.1-8B"})
    weights = {name: weight.bfloat16() for name, weight in random_weights().items()}
    (folder / path / "checkpoints").mkdir()
    save_file(_as_linear(weights, "decoder.bias"), folder / path / "checkpoints/final.safetensors")
    W_enc, W_dec, b_enc, b_dec = (weight.float() for weight in weights.values())
    return {
        "W_enc": W_enc * scale,
        "W_dec": W_dec / scale,
        "b_enc": b_enc,
        "b_dec": b_dec / scale,
        "threshold": torch.full((D_SAE,), config["jump_relu_threshold"] * scale),
    }


def save_dictionary_learning(
    folder: Path, path: str, dict_class: str, lm_name: str, layer: int
) -> Weights:
    """dictionary_learning: a config of trainer and buffer, and a state dict saved by torch."""
    weights = random_weights()
    if dict_class == "AutoEncoder":
        saved = _as_linear(weights, "bias")
    elif dict_class == "AutoEncoderTopK":
        saved = _as_linear(weights, "b_dec")
    elif dict_class == "GatedAutoEncoder":
        del weights["b_enc"]
        weights |= {name: 0.1 * torch.randn(D_SAE) for name in ("b_gate", "b_mag", "r_mag")}
        saved = {
            "encoder.weight": weights["W_enc"].T.contiguous(),
            "decoder.weight": weights["W_dec"].T.contiguous(),
            "decoder_bias": weights["b_dec"],
            "gate_bias": weights["b_gate"],
            "mag_bias": weights["b_mag"],
            "r_mag": weights["r_mag"],
        }
    else:  # BatchTopK and its Matryoshka: one threshold for all features
        saved = {**weights, "k": torch.tensor(6), "threshold": torch.tensor(0.25)}
        weights["threshold"] = torch.full((D_SAE,), 0.25)
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D_MODEL,
        "dict_size": D_SAE,
        "k": 6,
        "layer": layer,
        "lm_name": lm_name,
        "submodule_name": f"resid_post_layer_{layer}",
    }
    buffer = {"d_submodule": D_MODEL, "io": "out", "ctx_len": 128}
    _write(folder / path / "config.json", {"trainer": trainer, "buffer": buffer})
    torch.save(saved, folder / path / "ae.pt")
    return weights


def _as_linear(weights: Weights, b_dec: str) -> Weights:
    """The weights as two linear layers; `b_dec` is the name of what is added in the end."""
    return {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
        b_dec: weights["b_dec"],
    }


def _write(file: Path, config: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config))
