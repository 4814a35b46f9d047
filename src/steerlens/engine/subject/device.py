"""Which device and dtype a run uses."""

from __future__ import annotations

from typing import Any

import torch

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
    """Resolve the setting `dtype`, which is that of model and SAE alike: `auto` is float32 on the
    CPU, else bfloat16.

    Args:
        dtype: `auto` or a name of torch's.
        device: the setting beside it.
        device_map: the setting beside it; anything but None puts parts on other devices.
    """
    if dtype == "auto":
        on_cpu = resolve_device(device).type == "cpu" and device_map is None
        return torch.float32 if on_cpu else torch.bfloat16
    return getattr(torch, dtype)
