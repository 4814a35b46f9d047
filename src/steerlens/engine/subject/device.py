"""Which device and dtype a run uses."""

from __future__ import annotations

from typing import Any

import torch

from steerlens.config.parse import parse_dtype
from steerlens.errors import SteerlensError


def resolve_device(name: str) -> torch.device:
    """Resolve the setting `device`: `auto` is CUDA where there is one, else Apple's MPS, else the
    CPU.

    Raises:
        SteerlensError: this machine hasn't the device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, True):
        raise SteerlensError(f"device={name} is not available here; use device=cpu.")
    if device.type == "cuda" and (device.index or 0) >= (n := torch.cuda.device_count()):
        raise SteerlensError(f"device={name}: this machine has cuda:0 to cuda:{n - 1}.")
    return device


def resolve_dtype(dtype: str, device: str, device_map: Any = None) -> torch.dtype:
    """Resolve the setting `dtype`, which is that of model and SAE alike, beside the settings
    `device` and `device_map`.
    """
    return getattr(torch, parse_dtype(dtype, resolve_device(device).type, device_map))
