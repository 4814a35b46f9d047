"""Weights of SAEs in the formats of `steerlens.config.sae_formats`, under SAELens' names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steerlens.config.sae_formats import DICTIONARY_WEIGHTS, GEMMA_SCOPE_WEIGHTS, SAE_WEIGHTS

TRANSPOSED = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}
NAMES = {
    "encoder.bias": "b_enc",
    "decoder_bias": "b_dec",
    "bias": "b_dec",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
"""What other libraries call weights of SAELens; linear layers are stored transposed."""
OWN = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold", "b_gate", "b_mag", "r_mag"}
"""All that SAELens' architectures have, of what the formats hold."""


def read_weights(
    file: Path, config: dict[str, Any], device: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and weights of an SAE in `file`, whose name tells its format.

    Returns:
        `W_enc` (D, F), `W_dec` (F, D) and whatever else the architecture has, on `device`; for
        SAELens' format as its own loader gives them.
    """
    from sae_lens.loading.pretrained_sae_loaders import read_sae_components_from_disk
    from safetensors.torch import load_file

    if file.name == SAE_WEIGHTS:
        return read_sae_components_from_disk(config, file, device)
    if file.name == GEMMA_SCOPE_WEIGHTS:
        with np.load(file, allow_pickle=False) as arrays:
            stored = {name: torch.from_numpy(arrays[name]) for name in arrays}
    elif file.name == DICTIONARY_WEIGHTS:
        stored = torch.load(file, map_location=device, weights_only=True)
    else:
        stored = load_file(file, device=device)
    weights = _as_saelens(stored)
    if config["architecture"] == "jumprelu":
        weights["threshold"] = weights["threshold"].expand(config["d_sae"]).clone()
    else:
        weights.pop("threshold", None)  # of a top-k, for a mode that nobody asks for
    return config, {name: weight.to(device) for name, weight in weights.items()}


def _as_saelens(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {}
    for name, weight in stored.items():
        if name in TRANSPOSED:
            weights[TRANSPOSED[name]] = weight.T.contiguous()
        else:
            weights[NAMES.get(name, name)] = weight
    return {name: weight for name, weight in weights.items() if name in OWN}
