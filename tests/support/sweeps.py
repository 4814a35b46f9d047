"""Folders of sweeps as jobs leave them, without running any."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from steerlens.analysis.summary import summarise
from steerlens.config.compose import compose
from steerlens.results import COVERAGE, FEATURES, NULL_SCORES, STEERING, SUMMARY_FILE
from steerlens.results.folder import read_tables
from steerlens.results.status import STATUS_FILE
from steerlens.storage.files import CONFIG_FILE, JOB_FILE, SWEEP_FILE, write_json, write_text
from tests.support.frames import frame

DONE = {"state": "done", "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:01:00Z"}


def save_run(
    folder: Path,
    features: pd.DataFrame | None = None,
    steering: pd.DataFrame | None = None,
    coverage: pd.DataFrame | None = None,
    null_scores: pd.DataFrame | None = None,
) -> Path:
    """A finished run with the given tables and what follows from them, but no figures or report."""
    folder.mkdir(parents=True, exist_ok=True)
    FEATURES.write(frame() if features is None else features, folder)
    if steering is not None:
        STEERING.write(steering, folder)
    if coverage is not None:
        COVERAGE.write(coverage, folder)
    if null_scores is not None:
        NULL_SCORES.write(null_scores, folder)
    write_text(folder / CONFIG_FILE, _settings())
    write_json(folder / SUMMARY_FILE, summarise(read_tables(folder)) | {"study": None})
    write_json(folder / STATUS_FILE, DONE)
    return folder


@cache
def _settings() -> str:
    return yaml.safe_dump(dataclasses.asdict(compose(["tracking.mode=disabled"])))


def save_job(folder: Path, overrides: dict[str, str], id: str = "one", **tables: Any) -> Path:
    """A finished job of the sweep `id`."""
    save_run(folder, **tables)
    write_json(folder / JOB_FILE, {"sweep": id, "key": "k", "overrides": overrides})
    return folder


def save_failed_job(folder: Path, overrides: dict[str, str], status: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOB_FILE, {"sweep": "one", "key": "k", "overrides": overrides})
    write_json(folder / STATUS_FILE, status)
    return folder


def save_sweep(folder: Path, jobs: int | None = None, id: str = "one") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SWEEP_FILE, {"id": id, "jobs": jobs, "started": "2026-01-01T00:00:00Z"})
    return folder
