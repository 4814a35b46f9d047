"""Weights & Biases, which may fail but never stops a run nor loses a result."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.errors import unknown
from steerlens.results import best_features
from steerlens.text import visible_token, visible_tokens

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.config.schema import TrackingConfig

MODES = ("offline", "online", "disabled")

TABLE_ROWS = 1000
"""Rows of the feature table in W&B: what a browser still shows well. The file has all."""

INIT_TIMEOUT = 30
FINISH_TIMEOUT = 120
"""Seconds to wait for W&B's server at the start and at the end of a run."""


class Tracker(Protocol):
    """What a run tells about itself while it goes on."""

    def log_features(self, frame: pd.DataFrame) -> None:
        """The table of features: a histogram per layer and the best rows."""
        ...

    def log_figures(self, figures: Mapping[str, list[Path]]) -> None:
        """Figures by name, as `figures.draw_all` gives them."""
        ...

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """The end of the run, with the content of `summary.json`."""
        ...


class NullTracker:
    """Tells nobody."""

    def log_features(self, frame: pd.DataFrame) -> None:
        pass

    def log_figures(self, figures: Mapping[str, list[Path]]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        pass


def start(config: TrackingConfig, folder: Path, run_config: Mapping[str, Any]) -> Tracker:
    """A tracker for the run in `folder`, whose settings are `run_config`."""
    if config.mode not in MODES:
        raise unknown("tracking.mode", config.mode, MODES)
    if config.mode == "disabled":
        return NullTracker()
    return WandbTracker(config, Path(folder), run_config)


class WandbTracker:
    """A W&B run whose files lie in the run's folder; silent after its first failure."""

    def __init__(
        self, config: TrackingConfig, folder: Path, run_config: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self._run: Any = None
        self._wandb: Any = None
        self._try("starting", lambda: self._start(config, run_config))

    def log_features(self, frame: pd.DataFrame) -> None:
        self._try("logging the features", lambda: self._log_features(frame))

    def log_figures(self, figures: Mapping[str, list[Path]]) -> None:
        self._try("logging the figures", lambda: self._log_figures(figures))

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        self._try("finishing", lambda: self._finish(summary, failed))
        self._run = None

    def _try(self, what: str, action: Callable[[], None]) -> None:
        """Do `action`; a failure is told once, and ends the tracking but not the run."""
        if self._run is None and what != "starting":
            return
        try:
            with _files_in(self.folder), _no_prompt():
                action()
        except Exception as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            warnings.warn(
                f"W&B failed while {what} ({text}); the run goes on without it, and its results "
                f"are in {self.folder}.",
                RuntimeWarning,
                stacklevel=3,
            )
            self._abandon()

    def _abandon(self) -> None:
        run, self._run = self._run, None
        try:
            if run is not None:
                run.finish(exit_code=1)
        except Exception:
            pass  # already told

    def _start(self, config: TrackingConfig, run_config: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT,
            silent=True,  # the terminal belongs to the run's own progress and table
            console="off",
            disable_code=True,
        )
        if "finish_timeout" in type(settings).model_fields:  # since wandb 0.22 or so
            settings.finish_timeout = FINISH_TIMEOUT
            settings.finish_timeout_raises = False
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            name=config.name or self.folder.name,
            tags=list(config.tags),
            mode="online" if config.mode == "online" else "offline",
            dir=str(self.folder),
            config=dict(run_config),
            settings=settings,
        )

    def _log_features(self, frame: pd.DataFrame) -> None:
        self._run.define_metric("by_layer/*", step_metric="layer")
        scored = frame[frame["output_score"].notna()]
        for layer, scores in scored.groupby("layer", sort=True)["output_score"]:
            values = scores.to_numpy(dtype=float)
            self._run.log(
                {
                    "layer": int(str(layer)),
                    "by_layer/output_score": self._wandb.Histogram(values, num_bins=50),
                }
            )
        best = best_features(frame, TABLE_ROWS)
        table = self._wandb.Table(
            columns=["layer", "feature", "S_out", "rank", "p", "token", "logit lens"],
            data=[_table_row(row) for row in best.to_dict("records")],
        )
        self._run.log({"best_features": table})
        self._run.summary["features"] = len(frame)
        self._run.summary["features_in_table"] = len(best)

    def _log_figures(self, figures: Mapping[str, list[Path]]) -> None:
        pictures = {
            f"figures/{name}": self._wandb.Image(str(path))
            for name, paths in figures.items()
            for path in paths
            if path.suffix == ".png"
        }
        if pictures:
            self._run.log(pictures)

    def _finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        self._run.summary.update(_flat(summary))
        self._run.finish(exit_code=int(failed))
