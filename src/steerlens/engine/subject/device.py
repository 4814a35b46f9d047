"""Which device and dtype a run uses."""

from __future__ import annotations

import torch

from steerlens.config.schema import RunConfig
from steerlens.errors import SteerlensError


def resolve_device(config: RunConfig) -> torch.device:
    """`auto` is CUDA where there is one, else Apple's MPS, else the CPU."""
    if config.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(config.device)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, True):
        raise SteerlensError(f"device={config.device} is not available here; use device=cpu.")
    if device.type == "cuda" and (device.index or 0) >= (n := torch.cuda.device_count()):
        raise SteerlensError(f"device={config.device}: this machine has cuda:0 to cuda:{n - 1}.")
    return device


def resolve_dtype(config: RunConfig) -> torch.dtype:
    """`auto` is float32 on the CPU, else bfloat16; it applies to model and SAE alike."""
    if config.dtype == "auto":
        on_cpu = resolve_device(config).type == "cpu" and config.device_map is None
        return torch.float32 if on_cpu else torch.bfloat16
    return getattr(torch, config.dtype)
