"""Weights & Biases, which may fail but never stops a run nor loses a result."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.analysis.ranking import best_features
from steerlens.analysis.steering_summary import curve_rows, payoff_rows
from steerlens.analysis.summary import SCORES
from steerlens.config.schema import ModelConfig, SaeConfig
from steerlens.errors import unknown
from steerlens.report.tracking.tables import factor_curves, flat, table_rows, text_rows
from steerlens.results.folder import RunTables
from steerlens.results.text import visible

if TYPE_CHECKING:
    from steerlens.config.schema import TrackingConfig

logger = logging.getLogger(__name__)

MODES = ("offline", "online", "disabled")

TABLE_ROWS = 1000
"""Rows of a table in W&B: what a browser still shows well. The files have all."""

NAME_CHARACTERS = 100
"""Of a table's name: W&B keeps a table as an artifact, called by the run and the table, with 128
characters at most."""

PAGE_BYTES = 10_000_000
"""A larger page is an artifact: W&B shows none of this size in its panels."""

INIT_TIMEOUT = 30
FINISH_TIMEOUT = 120
"""Seconds to wait for W&B's server at the start and at the end of a run."""


class Tracker(Protocol):
    """What a run tells about itself while it goes on."""

    def log_tables(self, tables: RunTables, summary: Mapping[str, Any]) -> None:
        """Log a histogram per layer and the best features; curves and texts of steering."""
        ...

    def log_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table of any rows, all with the same keys."""
        ...

    def log_figures(self, figures: Mapping[str, list[Path]]) -> None:
        """Log figures by name, as `figures.draw_all` gives them."""
        ...

    def log_page(self, page: Path) -> None:
        """Log `report.html`; it may not be there."""
        ...

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """End the run, with the content of `summary.json`."""
        ...


def _artifact_name(name: str) -> str:
    """Return a table's name, a long one cut and told from the others by its digest: the label of a
    result has every setting in which it differs, paths among them.
    """
    if len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: NAME_CHARACTERS - len(digest) - 1]}-{digest}"


class NullTracker:
    """Tells nobody."""

    def log_tables(self, tables: RunTables, summary: Mapping[str, Any]) -> None:
        """Log the run's tables."""
        pass

    def log_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table of any rows, all with the same keys."""
        pass

    def log_figures(self, figures: Mapping[str, list[Path]]) -> None:
        """Log figures by name, as `figures.draw_all` gives them."""
        pass

    def log_page(self, page: Path) -> None:
        """Log `report.html`; it may not be there."""
        pass

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """End the run, with the content of `summary.json`."""
        pass


def start(
    config: TrackingConfig, folder: Path, run_config: Mapping[str, Any], id: str | None = None
) -> Tracker:
    """Return a tracker for the run in `folder`, whose settings are `run_config`.

    With an `id` the W&B run is the same one each time.
    """
    if config.mode not in MODES:
        raise unknown("tracking.mode", config.mode, MODES)
    if config.mode == "disabled":
        return NullTracker()
    return WandbTracker(config, Path(folder), run_config, id)


class WandbTracker:
    """A W&B run whose files lie in the run's folder; silent after its first failure."""

    def __init__(
        self,
        config: TrackingConfig,
        folder: Path,
        run_config: Mapping[str, Any],
        id: str | None = None,
    ) -> None:
        self.folder = folder
        self._id = id
        self._offline = config.mode == "offline"
        self._run: Any = None
        self._wandb: Any = None
        self._try("starting", lambda: self._start(config, run_config))

    def log_tables(self, tables: RunTables, summary: Mapping[str, Any]) -> None:
        """Log the run's tables."""
        self._try("logging the tables", lambda: self._log_tables(tables, summary))

    def log_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a table of any rows, all with the same keys."""
        self._try(f"logging the table {name}", lambda: self._log_rows(name, rows))

    def log_figures(self, figures: Mapping[str, list[Path]]) -> None:
        """Log figures by name, as `figures.draw_all` gives them."""
        self._try("logging the figures", lambda: self._log_figures(figures))

    def log_page(self, page: Path) -> None:
        """Log `report.html`; it may not be there."""
        self._try("logging the page", lambda: self._log_page(page))

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """End the run, with the content of `summary.json`."""
        self._try("finishing", lambda: self._finish(summary, failed))
        self._run = None

    def _try(self, step: str, action: Callable[[], None]) -> None:
        """Do `action`; a failure is told once, and ends the tracking but not the run."""
        if self._run is None and step != "starting":
            return
        try:
            with _files_in(self.folder, self._offline), _no_prompt():
                action()
        except Exception as error:
            text = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            logger.warning(
                "W&B failed while %s (%s); the run goes on without it and its results are in %s.",
                step,
                visible(text),
                self.folder,
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
        # Not in every version: the timeout is there since wandb 0.22 or so. `provenance.json` has
        # the versions, and listing every package takes as long as the rest of the start.
        optional = {
            "finish_timeout": FINISH_TIMEOUT,
            "finish_timeout_raises": False,
            "x_save_requirements": False,
        }
        for name, value in optional.items():
            if name in type(settings).model_fields:
                setattr(settings, name, value)
        mode: Any = config.mode
        # All runs of a group would take the id of WANDB_RUN_ID; an agent of a W&B sweep gives each
        # of its runs the right one.
        shares_id = config.group is not None and "WANDB_SWEEP_ID" not in os.environ
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            name=config.name or run_name(run_config) or self.folder.name,
            tags=list(config.tags),
            id=self._id or (secrets.token_hex(4) if shares_id else None),
            resume="allow" if self._id else None,
            mode=mode,
            dir=str(self.folder),
            config=dict(run_config),
            settings=settings,
        )

    def _log_tables(self, tables: RunTables, summary: Mapping[str, Any]) -> None:
        self._log_features(tables, summary)
        if not tables.generations.empty:
            self._log_steering(tables)
        if summary["steering"]:
            self._log_rows("payoff", payoff_rows(summary["steering"]))
            self._log_rows("threshold_curve", curve_rows(summary["steering"]))

    def _log_features(self, tables: RunTables, summary: Mapping[str, Any]) -> None:
        frame, null = tables.features, tables.null_scores
        # Of a metric W&B's summary has the last value, which here is the last layer's.
        self._run.define_metric("layer", summary="none")
        self._run.define_metric("by_layer/*", step_metric="layer", summary="none")
        for statistics in summary["layers"]:
            layer = statistics["layer"]
            values = {f"by_layer/{k}": number for k, number in statistics.items() if k != "layer"}
            scores = {column: frame.loc[frame["layer"] == layer, column] for column in SCORES}
            scores["output_score_null"] = null.loc[null["layer"] == layer, "output_score"]
            for column, of_layer in scores.items():
                numbers = of_layer.dropna().to_numpy(dtype=float)
                if len(numbers):
                    values[f"by_layer/{column}"] = self._wandb.Histogram(numbers, num_bins=50)
            self._run.log({"layer": layer, **values})
        self._log_rows("layers", summary["layers"])
        best = best_features(frame, TABLE_ROWS)
        self._log_rows("features", table_rows(best))
        note = f"the best {len(best):,} of {len(frame):,}; features.parquet has all"
        self._run.summary["features_table"] = note

    def _log_steering(self, tables: RunTables) -> None:
        self._run.define_metric("factor", summary="none")
        self._run.define_metric("by_factor/*", step_metric="factor", summary="none")
        for point in factor_curves(tables.generations):
            self._run.log(point)
        rows = text_rows(tables, TABLE_ROWS)
        self._log_rows("texts", rows)
        note = f"{len(rows):,} of {len(tables.generations):,}; generations.parquet has all"
        self._run.summary["texts_table"] = note

    def _log_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(rows[0]) if rows else []
        data = [list(row.values()) for row in rows]
        self._run.log({_artifact_name(name): self._wandb.Table(columns=columns, data=data)})

    def _log_figures(self, figures: Mapping[str, list[Path]]) -> None:
        pictures = {
            f"figures/{name}": self._wandb.Image(str(path))
            for name, paths in figures.items()
            for path in paths
            if path.suffix == ".png"
        }
        if pictures:
            self._run.log(pictures)

    def _log_page(self, page: Path) -> None:
        if not page.is_file():
            return
        if page.stat().st_size <= PAGE_BYTES:
            text = page.read_text(encoding="utf-8")
            # As it is: W&B's own styles and scripts are none that the page's policy would run.
            html = self._wandb.Html(text, inject=False, data_is_not_path=True)
            self._run.log({"report": html})
            return
        artifact = self._wandb.Artifact("report", type="report")
        artifact.add_file(str(page))
        self._run.log_artifact(artifact)

    def _finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        self._run.summary.update(flat(summary))
        self._run.finish(exit_code=int(failed))


def run_name(settings: Mapping[str, Any]) -> str | None:
    """Return what a run is called by its settings: experiment, model, SAE and layer; None
    without them.
    """
    model, sae, layer = (settings.get(key) for key in ("model", "sae", "layer"))
    if not (isinstance(model, Mapping) and isinstance(sae, Mapping)):
        return None
    titles = [
        ModelConfig(str(model.get("name")), str(model.get("path"))).title,
        SaeConfig(str(sae.get("name")), sae.get("release"), path=sae.get("path")).title,
    ]
    layers = ", ".join(map(str, layer)) if isinstance(layer, list | tuple) else layer
    return f"{settings.get('name')}: {', '.join(titles)}, layer {layers}"


@contextmanager
def _files_in(folder: Path, offline: bool) -> Iterator[None]:
    """W&B's caches, too, lie in the run's folder; what the user has set counts more."""
    names = ["CACHE", "DATA", "ARTIFACT"]
    if offline:
        names.append("CONFIG")  # online, the user's own holds the address of their server
    variables = {f"WANDB_{name}_DIR": str(folder / "wandb" / name.lower()) for name in names}
    added = {key: value for key, value in variables.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def _no_prompt() -> Iterator[None]:
    """Without a key W&B would ask for one, and wait: nobody sits in front of a batch job."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:  # noqa: PTH123
        try:
            yield
        finally:
            sys.stdin = stdin
