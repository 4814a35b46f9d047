"""Hydra's callback: when a multirun ends, its jobs are joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Join(Callback):
    """Joins at the end of a multirun. Hydra doesn't call it when a launcher or sweeper raises: the
    command line then joins by itself.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Join the jobs once the sweep has ended."""
        from steerlens.runs.sweep import is_sweep, join_sweep

        folder = Path(config.hydra.sweep.dir)
        if is_sweep(folder):  # plans are none
            join_sweep(folder)
