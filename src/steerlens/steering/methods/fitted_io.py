"""What methods have learnt, kept in the cache: tensors and a few facts in one safetensors file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from steerlens.steering.methods.directions import Detection, Directions, Latents
from steerlens.steering.methods.fitting import Fitted
from steerlens.steering.methods.lora import Lora
from steerlens.steering.methods.loreft import Loreft
from steerlens.storage.files import parse_json

if TYPE_CHECKING:
    from steerlens.storage.store import Store

FILE = "learnt.safetensors"

Learnt = Fitted | Lora | Loreft


def find(store: Store | None, key: Mapping[str, Any]) -> Learnt | None:
    """Return what was learnt under `key`; None if nothing was, or its file can't be read."""
    from safetensors import SafetensorError, safe_open

    if store is None:
        return None
    if store.load(key, FILE) is None:
        return None
    path = store.folder(key) / FILE
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = parse_json(file.metadata()["facts"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return _from_tensors(tensors, facts)


def keep(store: Store | None, key: Mapping[str, Any], learnt: Learnt) -> None:
    """Keep what was learnt under `key`."""
    from safetensors.torch import save

    if store is not None:
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(learnt).items()
        }
        store.keep(key, FILE, save(tensors, {"facts": json.dumps(_facts(learnt))}))


def tensors_of(learnt: Learnt) -> dict[str, torch.Tensor]:
    """Return all tensors, by name."""
    if isinstance(learnt, Fitted):
        directions = learnt.directions
        latents = directions.latents
        named = {
            "vectors_CD": directions.vectors_CD,
            "features_C": directions.features_C,
            "ids_CK": latents and latents.ids_CK,
            "weights_CK": latents and latents.weights_CK,
            "scale_C": directions.scale_C,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}
    parts = ("down", "up") if isinstance(learnt, Lora) else ("rotate", "weight", "bias")
    return {
        f"{part}.{layer}": tensor
        for part in parts
        for layer, tensor in getattr(learnt, part).items()
    }


def _facts(learnt: Learnt) -> dict[str, Any]:
    if isinstance(learnt, Fitted):
        return {
            "kind": "directions",
            "method": learnt.method,
            "rectified": learnt.directions.rectified,
            "detection": dataclasses.asdict(learnt.detection),
        }
    if isinstance(learnt, Lora):
        return {"kind": "lora"}
    return {"kind": "loreft", "first": learnt.first, "last": learnt.last}


def _from_tensors(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> Learnt:
    if facts["kind"] == "directions":
        latents = None
        if "ids_CK" in tensors:
            latents = Latents(tensors["ids_CK"], tensors["weights_CK"])
        directions = Directions(
            tensors["vectors_CD"],
            facts["rectified"],
            tensors.get("features_C"),
            latents,
            tensors.get("scale_C"),
        )
        return Fitted(facts["method"], directions, Detection(**facts["detection"]))
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        part, layer = name.split(".")
        parts.setdefault(part, {})[int(layer)] = tensor
    parts = {part: dict(sorted(by_layer.items())) for part, by_layer in parts.items()}
    if facts["kind"] == "lora":
        return Lora(**parts)
    return Loreft(**parts, first=facts["first"], last=facts["last"])
