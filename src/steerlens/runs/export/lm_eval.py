"""Vectors for lm-evaluation-harness: the file that its model type `steered` loads.

That is a pickle of one dictionary for each hookpoint, a module's name inside the model without its
head, to whose output the vector is added at every position, BOS and padding included:

    lm_eval --model steered --model_args pretrained=MODEL,steer_path=FILE.pt --tasks ...
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from steerlens.errors import SteerlensError
from steerlens.runs.export import Card, SteeringVector, check_together, write_card
from steerlens.storage.files import atomic_write

NOTE = (
    "For lm-evaluation-harness (model type `steered`), which adds a constant at every position, "
    "BOS and padding included; steerlens' own edit changes the last position, by its own a_max."
)


def export_lm_eval(path: Path, vectors: Sequence[SteeringVector]) -> None:
    """Write `vectors` to `path` and their cards to `path`.json, atomically each.

    Vectors of one hookpoint are summed, because the format has room for one.

    Raises:
        SteerlensError: as `export_safetensors`, for `.pt` or `.pth`; and for a vector of the first
            block's input, which is no module's output.
    """
    check_together(path, vectors, (".pt", ".pth"))  # any other is refused or read as CSV
    sums: dict[str, torch.Tensor] = {}
    for vector in vectors:
        hookpoint = _hookpoint(vector.card)
        sums[hookpoint] = sums.get(hookpoint, torch.zeros(())) + vector.vector_D
    steered: dict[str, dict[str, Any]] = {
        hookpoint: {
            "steering_vector": vector_D,
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for hookpoint, vector_D in sums.items()
    }
    with atomic_write(path) as file:
        torch.save(steered, file)
    write_card(path, vectors, NOTE)


def _hookpoint(card: Card) -> str:
    if card.side != "output":
        raise SteerlensError(
            f"lm-eval changes outputs of modules only, and {card.hook_name} of {card.model} is "
            "none; take an SAE of hook_resid_post, or a later layer."
        )
    return card.module.removeprefix(f"{card.base_model_prefix}.")
