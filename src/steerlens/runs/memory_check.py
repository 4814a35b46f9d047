"""Whether the weights fit in memory, told before anything is downloaded and without torch."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

from steerlens.config.folders import sae_folders, tensor_shapes
from steerlens.config.gguf import gguf_file, read_header
from steerlens.config.judge import local_model
from steerlens.config.parse import parse_dtype
from steerlens.config.schema import ModelConfig, SaeConfig
from steerlens.config.settings import Settings, SubjectSettings
from steerlens.errors import SteerlensError
from steerlens.runs.subject_check import local_folder

GPU_DRIVERS = [
    Path("/dev") / name
    for name in ("nvidiactl", "nvhost-ctrl", "nvhost-gpu", "nvmap", "kfd", "dxg")
]
"""What Linux has where CUDA or ROCm has a GPU: a card's, Jetson's, AMD's, Windows' below WSL."""

LORA = "LoRA"
"""The method, of `config.schema.STEERED_BY`, that trains a second copy of the model."""
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def device_type(subject: SubjectSettings) -> str:
    """Return cpu, cuda or mps: what `device=auto` will most likely be, guessed without torch."""
    if subject.device != "auto":
        return subject.device.split(":")[0]
    if gpu_memory():
        return "cuda"
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return "mps" if apple else "cpu"


def refuse_absent_device(subject: SubjectSettings) -> None:
    """Refuse a device that this machine surely hasn't, without torch; torch knows the others."""
    kind, system = subject.device.partition(":")[0], platform.system()
    absent = {
        "cuda": system == "Linux" and not (any(map(Path.exists, GPU_DRIVERS)) or gpu_memory()),
        "mps": system != "Darwin",
    }
    if absent.get(kind, False):
        raise SteerlensError(f"device={subject.device} is not available here; use device=cpu.")


def dtype_name(subject: SubjectSettings) -> str:
    """Return the dtype that `dtype=auto` means on the run's device."""
    return parse_dtype(subject.dtype, device_type(subject), subject.device_map)


class Weights(NamedTuple):
    """Weights that a run holds in memory besides its model's and one SAE's."""

    name: str
    n_numbers: float
    """0 where nothing tells."""
    without: str
    """The setting that does without them."""


def estimate_weights(settings: Settings) -> int | None:
    """Add up the bytes of all weights that a run holds at once: of the model, one SAE, and
    others; None where nothing tells the model's size.
    """
    subject = settings.subject
    n_params = _model_size(subject.model)
    if n_params is None:
        return None
    size = n_params + _sae_size(subject.sae, subject.model)
    size += sum(weights.n_numbers for weights in _weights_beside(settings, n_params))
    return int(size * BYTES[dtype_name(subject)])


def _weights_beside(settings: Settings, n_params: float) -> list[Weights]:
    """Return the evaluator of steered texts, a judge in this process, and the model that LoRA
    trains, if the run loads them; all of the same dtype, where the model is.
    """
    beside_model = []
    if settings.evaluator and settings.steering.factors:
        name = f"the evaluator {settings.evaluator.title}"
        beside_model.append(Weights(name, _model_size(settings.evaluator) or 0, "evaluator=null"))
    concepts = settings.concepts
    if judge := local_model(settings.judge):
        name = f"the judge {judge.title}"
        without = "another choice.rule" if concepts is None else "judge=lexical"
        beside_model.append(Weights(name, _model_size(judge) or 0, without))
    if concepts is not None and LORA in concepts.methods:
        name = f"the copy of {settings.subject.model.title} that LoRA trains"
        beside_model.append(Weights(name, n_params, "concepts.methods without LoRA"))
    return beside_model


def refuse_if_too_big(settings: Settings, spare: int = 0) -> None:
    """Refuse weights that can't fit in memory, before they are downloaded.

    `spare` is the bytes that this process holds and could give back.
    """
    subject = settings.subject
    needed = estimate_weights(settings)
    if needed is None:
        return
    device = device_type(subject)
    available = available_memory(subject)
    if available is None or needed <= available + spare:
        return
    all_beside = _weights_beside(settings, _model_size(subject.model) or 0)
    beside_model = [weights for weights in all_beside if weights.n_numbers]
    ways = [weights.without for weights in beside_model]
    if device == "cuda" and subject.device_map is None:
        ways.append("device_map=auto")
    if dtype_name(subject) == "float32":
        ways.append("dtype=bfloat16")
    ways.append("a smaller model")
    names = [subject.model.title, subject.sae.title, *(weights.name for weights in beside_model)]
    where = "all devices together have" if subject.device_map else f"{device} has"
    raise SteerlensError(
        f"the weights of {', '.join(names[:-1])} and {names[-1]} take {gigabytes(needed)} in "
        f"{dtype_name(subject)}, but {where} {gigabytes(available)}; try {' or '.join(ways)}."
    )


def available_memory(subject: SubjectSettings) -> int | None:
    """Return bytes that weights can take where the run puts them; None if nothing tells."""
    gpus = gpu_memory()
    if subject.device_map is not None:
        return sum(gpus) + main_memory()
    if device_type(subject) != "cuda":
        return main_memory()
    match = re.search(r":(\d+)$", subject.device)
    if match and int(match[1]) < len(gpus):
        return gpus[int(match[1])]
    return max(gpus, default=None)


def main_memory() -> int:
    """Return bytes of main memory that are free for this process, within a container's limit."""
    free = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(free, int(text)) if text.isdigit() else free


def gpu_memory() -> list[int]:
    """Return bytes of memory of each NVIDIA GPU that this process may use, as the driver's tool
    tells.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(
            query, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    sizes = [int(line) * 2**20 for line in output.split() if line.isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return sizes
    places = [device.strip() for device in visible.split(",")]
    return [
        sizes[int(device)] for device in places if device.isdigit() and int(device) < len(sizes)
    ]


def gigabytes(size: float) -> str:
    """Return a number of bytes as people write it."""
    return f"{size / 1e9:.3g} GB"


def _model_size(model: ModelConfig) -> float | None:
    if gguf := gguf_file(model):
        return read_header(gguf).n_parameters
    folder = local_folder(model)
    if folder is None:
        return model.n_params
    return sum(_tensor_sizes(file) for file in folder.glob("*.safetensors"))


def _sae_size(sae: SaeConfig, model: ModelConfig) -> float:
    """Return numbers in the largest SAE; 0 where nothing tells: SAEs are small beside their
    model.
    """
    if sae.path:
        folders = sae_folders(Path(sae.path))
        files = [file for folder in folders for file in folder.glob("*.safetensors")]
        return max(map(_tensor_sizes, files), default=0)
    return 2 * (sae.d_sae or 0) * (model.d_model or 0)


def _tensor_sizes(file: Path) -> int:
    return sum(map(math.prod, tensor_shapes(file).values()))
