"""Tiny folders in the Hugging Face and SAELens layouts, with weights that nobody loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def model_folder(path: Path, n_layers: int = 4, d_model: int = 8) -> Path:
    path.mkdir(parents=True)
    config = {"num_hidden_layers": n_layers, "hidden_size": d_model}
    (path / "config.json").write_text(json.dumps(config))
    save_file({"embed": np.zeros((10, d_model), np.float32)}, path / "model.safetensors")
    return path


def sae_folder(path: Path, layer: int = 1, d_in: int = 8, model: str = "somewhere") -> Path:
    path.mkdir(parents=True)
    metadata = {"hook_name": f"blocks.{layer}.hook_resid_post", "model_name": model}
    (path / "cfg.json").write_text(json.dumps({"d_in": d_in, "d_sae": 16, "metadata": metadata}))
    save_file({"W_dec": np.zeros((16, d_in), np.float32)}, path / "sae_weights.safetensors")
    return path
