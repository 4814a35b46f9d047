"""Files of Jacobians that somebody has fitted: ours, and those of the hub.

Ours is safetensors: `J` (layers, D, D) and the tensor `source_layers`, which may also be JSON in
the metadata, where `model` says whose they are. The hub's (`neuronpedia/jacobian-lens`) are what
the authors' code saves with PyTorch, `{J: {layer: (D, D)}, source_layers, n_prompts, d_model}` in
float16, with the model's name in a `config.yaml` beside them. Both are of the residual stream after
blocks. Nothing here imports torch before a Jacobian or one of the hub's files is read.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError, safe_open

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    import torch

HUB_CONFIG = "config.yaml"


@dataclass(frozen=True)
class LensFile:
    """What a file of Jacobians is of."""

    path: Path
    model: str | None
    """Whose they are, where that is said."""
    layers: tuple[int, ...]
    shape: tuple[int, ...]
    """Of one Jacobian."""
    tensors: Mapping[int, torch.Tensor] | None = field(default=None, repr=False)
    """By layer, if PyTorch has saved it; safetensors are read when a layer is asked for."""

    def refuse_missing_layers(self, layers: Iterable[int]) -> None:
        """Refuse the first of `layers` that it has no Jacobian of."""
        for layer in layers:
            if layer not in self.layers:
                present = ", ".join(map(str, self.layers))
                raise SteerlensError(f"lens.path={self.path} has no layer {layer}, only {present}.")

    def refuse_other_width(self, d_model: int | None, model: str) -> None:
        """Refuse one whose Jacobians aren't (d_model, d_model); None = not known yet."""
        if d_model is not None and self.shape != (d_model, d_model):
            raise SteerlensError(
                f"lens.path={self.path} is of a model with vectors of size {self.shape[-1]}, not "
                f"of {model}, whose vectors have size {d_model}."
            )

    def jacobian(self, layer: int) -> torch.Tensor:
        """Return the Jacobian (D, D) from the output of a block, float32 on the CPU."""
        self.refuse_missing_layers([layer])
        if self.tensors is not None:
            return self.tensors[layer].float()
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice("J")[self.layers.index(layer)].float()


def read_lens_file(path: Path) -> LensFile:
    """Read what a file is of, without its Jacobians.

    Raises:
        SteerlensError: it is no such file.
    """
    return _of_pytorch(path) if is_of_pytorch(path) else _of_safetensors(path)


def is_of_pytorch(path: Path) -> bool:
    """Return whether PyTorch has to be imported to look into it."""
    return zipfile.is_zipfile(path)


def model_beside(path: Path) -> str | None:
    """Return the model that the `config.yaml` beside one of the hub's files names; None without."""
    try:
        settings = yaml.safe_load((path.parent / HUB_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    name = settings.get("hf_model_name") if isinstance(settings, dict) else None
    return str(name) if name else None


def _of_safetensors(path: Path) -> LensFile:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = {*file.keys()}
            layers: Any = ()
            if "source_layers" in names:
                layers = file.get_tensor("source_layers").flatten().tolist()
            elif "source_layers" in metadata:
                layers = json.loads(metadata["source_layers"])
            shape = tuple(file.get_slice("J").get_shape()) if "J" in names else ()
    except (OSError, ValueError, SafetensorError) as error:
        raise SteerlensError(
            f"lens.path={path} is truncated, or no file with J, source_layers and d_model."
        ) from error
    if len(shape) != 3 or not layers or shape[0] != len(layers):
        raise SteerlensError(
            f"lens.path={path} has no J of shape (layers, d_model, d_model) with source_layers."
        )
    return LensFile(path, metadata.get("model"), tuple(map(int, layers)), shape[1:])


def _of_pytorch(path: Path) -> LensFile:
    import torch

    try:
        # Tensors and plain containers alone: a pickle of anything else is refused, not run.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise SteerlensError(
            f"lens.path={path} is truncated, or holds more than J, source_layers and d_model."
        ) from error
    tensors = saved.get("J") if isinstance(saved, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise SteerlensError(
            f"lens.path={path} has no J of one (d_model, d_model) for each of its source_layers."
        )
    shape = tuple(next(iter(tensors.values())).shape)
    return LensFile(path, model_beside(path), tuple(sorted(tensors)), shape, tensors)
