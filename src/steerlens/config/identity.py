"""What tells a model's weights from others', told without torch."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from steerlens.config.gguf import gguf_file
from steerlens.config.schema import ModelConfig
from steerlens.storage.provenance import file_identity, folder_identity, hub_revision


def model_identity(entry: ModelConfig, cache_dir: Path) -> dict[str, Any]:
    """Give what tells the weights of `entry` from others: the sha256 of its files, or a commit.

    Of a GGUF, also who dequantises it.
    """
    if file := gguf_file(entry):
        return {**file_identity(file, cache_dir), "gguf": version("gguf")}
    folder = Path(entry.path)
    if folder.is_dir():
        return folder_identity(folder, cache_dir)
    return {"repo_id": entry.path, "revision": hub_revision(entry.path, entry.revision)}
