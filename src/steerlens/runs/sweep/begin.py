"""The beginning of a sweep: its folder, which is that of the same command if there is one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steerlens.config.compose import count_jobs, is_basic, swept_by_files
from steerlens.results.status import refuse_foreign
from steerlens.storage.files import SWEEP_FILE, make_folder, read_json, remove_leftovers, write_json
from steerlens.storage.provenance import now

if TYPE_CHECKING:
    from omegaconf import DictConfig

NOT_THE_COMMAND = ("hydra.sweep.dir=", "hydra.launcher.", "hydra/launcher=", "debug=", "tracking")
"""Overrides that change where or how jobs run, but not what they find."""


@dataclass(frozen=True)
class Sweep:
    """A multirun that is about to start."""

    folder: Path
    id: str
    """Of the command: the same one again has the same."""
    goes_on: bool
    """Whether the folder holds jobs of the same command already."""


def begin(overrides: Sequence[str], tree: DictConfig) -> Sweep:
    """Make the folder of a sweep and its `sweep.json`.

    The same command again goes on in its own folder, unless the command line names one.

    Args:
        overrides: what the command line says.
        tree: what Hydra composes for a job, its own `hydra` node included.
    """
    swept = swept_by_files(tree, overrides)
    words = [*swept, *overrides]
    elsewhere = (*NOT_THE_COMMAND, "paths.")
    command = sorted(word for word in words if not word.lstrip("+").startswith(elsewhere))
    id = hashlib.sha256(json.dumps(command).encode()).hexdigest()[:16]
    folder = Path(tree.hydra.sweep.dir)
    names_folder = ("paths.output_dir=", "hydra.sweep.dir=", "paths=")
    if not any(word.lstrip("+").startswith(names_folder) for word in overrides):
        folder = _earlier(folder.parent, id) or folder
    refuse_foreign(folder)
    make_folder(folder)
    for written in (folder, folder / "figures"):
        remove_leftovers(written)
    record = read_json(folder / SWEEP_FILE)
    goes_on = isinstance(record, dict) and record.get("id") == id
    write_json(
        folder / SWEEP_FILE,
        {
            "id": id,
            "command": command,
            "jobs": count_jobs([*swept, *overrides]) if is_basic(tree) else None,
            "started": now(),
        },
    )
    return Sweep(folder, id, goes_on)


def _earlier(parent: Path, id: str) -> Path | None:
    """Return the newest folder of a sweep with this id."""
    runs = []
    for file in parent.glob(f"*/{SWEEP_FILE}"):
        record = read_json(file)
        if isinstance(record, dict) and record.get("id") == id:
            runs.append((str(record.get("started")), file.parent))
    return max(runs)[1] if runs else None
