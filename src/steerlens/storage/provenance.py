"""Where a run's numbers come from: versions, code, machine, and the exact model and SAE files.

Nothing here reads environment variables, and no absolute path is written but those that the user
typed on the command line.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from steerlens.errors import SteerlensError
from steerlens.storage.files import read_json, tidy, write_json

PROVENANCE_FILE = "provenance.json"

PACKAGES = (
    "steerlens",
    "torch",
    "transformers",
    "transformer-lens",
    "sae-lens",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "gguf",
    "datasets",
    "lm_eval",
    "peft",
    "scikit-learn",
    "openai",
    "anthropic",
    "wandb",
)

LIBRARIES = ("torch", "transformers", "transformer-lens", "sae-lens")
COMPUTING = ("data", "engine", "scores", "steering")
"""The rooms whose code numbers in the cache depend on, each with all that is in it."""

SUBJECT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".npz", ".json", ".model", ".jinja"}
SUBJECT_NAMES = {"merges.txt", "vocab.txt"}

SAMPLES, SAMPLE_BYTES = 16, 2**16
"""Blocks of a file that are compared, beside its size and time, and their size."""

_SECRET = re.compile(
    r"(?i)^(.*(?:api[_-]?key|access[_-]?key|_token|secret|password)[^=]*=).+$", re.S
)


def provenance(
    identities: Mapping[str, Any], argv: Sequence[str], seeds: Mapping[str, int] | int
) -> dict[str, Any]:
    """Return the content of `provenance.json`; `identities` says which model, SAE, ...

    were used.
    """
    return {
        "time": now(),
        "command": command_line(argv),
        "seeds": seeds,
        **identities,
        "versions": versions(),
        "git": git_state(),
        "hardware": hardware(),
    }


def command_line(argv: Sequence[str]) -> str:
    """Return `argv` as typed, without the program's folder and without values that look secret."""
    program, *arguments = argv or ["steerlens"]
    path = Path(program)
    name = path.parent.name if path.name == "__main__.py" else path.name
    return shlex.join([name, *(_SECRET.sub(r"\1***", argument) for argument in arguments)])


def versions() -> dict[str, str | None]:
    """Return versions of Python and of every package that can change a number; null if not
    installed.
    """
    return {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}


@cache
def version_of(name: str) -> str | None:
    """Return the version of the package `name`; None if it isn't installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def now() -> str:
    """Give the time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def code_digest(rooms: tuple[str, ...] = COMPUTING) -> str:
    """Digest the code of `rooms` and the versions of the libraries it calls; "." is the package.

    What is cached has it in its key, so that nothing made by other code is used. Comments and
    docstrings don't count.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(file for room in rooms for file in (package / room).rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode())
        digest.update(without_docstrings(file.read_text(encoding="utf-8")).encode())
    for name in LIBRARIES:
        digest.update(f"{name}=={version_of(name)}".encode())
    return digest.hexdigest()[:16]


def without_docstrings(source: str) -> str:
    """Return the syntax tree of `source` as text, without what only readers see."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_docstring(line)]  # pyright: ignore
    return ast.dump(tree)


def _is_docstring(line: ast.stmt) -> bool:
    """Tell a string that stands alone, of a function, a class or the constant above it."""
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def git_state() -> dict[str, Any] | None:
    """Return the commit of the checkout that steerlens runs from and whether it differs from it,
    or None.
    """
    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    # An installed package may lie in somebody's own repository (.venv): that is not our commit.
    if package != root / "src" / "steerlens" or not (root / ".git").exists():
        return None
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    if commit is None:
        return None
    changes = _output(["git", "-C", str(root), "status", "--porcelain"])
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def hardware() -> dict[str, Any]:
    """Return the platform, processor, memory and GPUs."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "ram_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "gpus": _gpus(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def _gpus() -> list[dict[str, str]]:
    fields = ["name", "memory.total", "driver_version"]
    query = f"--query-gpu={','.join(fields)}"
    lines = (_output(["nvidia-smi", query, "--format=csv,noheader"]) or "").splitlines()
    return [dict(zip(fields, line.split(", "), strict=False)) for line in lines]


def _output(command: list[str]) -> str | None:
    """Return what `command` prints, or None when it is missing, fails or hangs."""
    # Variables such as GIT_DIR would point git at another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=env
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


def file_identity(path: Path, cache_dir: Path) -> dict[str, Any]:
    """Return name, size and sha256 of a file; the hash is remembered by path and `file_stamp`."""
    path = Path(path)
    try:
        before = file_stamp(path)
        # One small file per path: processes never write to the same one at the same time with
        # different content, and `write_json` replaces it in one step.
        key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        cached = Path(cache_dir) / "sha256" / f"{key}.json"
        sha256 = _remembered(cached, before)
        if sha256 is None:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if file_stamp(path) == before:
                _remember(cached, before, sha256)
    except OSError as error:
        raise SteerlensError(
            f"can't read {path}: {(error.strerror or str(error)).lower()}."
        ) from error
    return {"file": path.name, "bytes": before["bytes"], "sha256": sha256}


def file_stamp(path: Path) -> dict[str, int | str]:
    """Describe a file quickly, so that another content is noticed: size, time, and a sample.

    The sample is the sha256 of the head, the tail and blocks between, of a small file of all of it.

    Raises:
        OSError: it can't be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        last = max(stat.st_size - SAMPLE_BYTES, 0)
        for index in range(SAMPLES):
            file.seek(last * index // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    sample = digest.hexdigest()[:32]
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sample": sample}


def _remembered(cached: Path, stamp: Mapping[str, int | str]) -> str | None:
    record = read_json(cached)
    if not isinstance(record, dict) or {key: record.get(key) for key in stamp} != stamp:
        return None
    sha256 = record.get("sha256")
    return sha256 if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) else None


def _remember(cached: Path, stamp: Mapping[str, int | str], sha256: str) -> None:
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        tidy(cached.parent)
        write_json(cached, {**stamp, "sha256": sha256})
    except (OSError, SteerlensError):
        pass  # only a cache: the next run computes the hash again


def folder_identity(path: Path, cache_dir: Path) -> dict[str, Any]:
    """Return the identity of a model's or SAE's folder: its weights, configuration and tokenizer
    files.

    Looks one level down too, for a folder with one SAE per sub-folder.
    """
    path = Path(path)
    files = sorted(
        file
        for file in [*path.glob("*"), *path.glob("*/*")]
        if (file.suffix in SUBJECT_SUFFIXES or file.name in SUBJECT_NAMES)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    )
    return {
        "folder": path.resolve().name,
        "files": [
            {**file_identity(file, cache_dir), "file": file.relative_to(path).as_posix()}
            for file in files
        ],
    }


def hub_revision(repo_id: str, revision: str | None = None, kind: str = "models") -> str | None:
    """Return the commit of the cached snapshot of a Hugging Face repository, if the hub's cache
    says.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    name = revision or "main"
    repo = Path(HF_HUB_CACHE) / f"{kind}--{repo_id.replace('/', '--')}"
    if (repo / "snapshots" / name).is_dir():
        return name  # the revision is a commit already
    ref = repo / "refs" / name
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None
