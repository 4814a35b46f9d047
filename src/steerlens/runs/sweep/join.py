"""The joined result of a sweep: one table, one set of figures, one summary.

`join` is idempotent: it reads what the jobs have left, and changes nothing where they haven't
changed since. A killed join is simply done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from steerlens.analysis.ranking import best_features
from steerlens.analysis.series import Series
from steerlens.config.parse import parse_shard
from steerlens.config.schema import TrackingConfig
from steerlens.errors import SteerlensError
from steerlens.report import tracking
from steerlens.report.sweep import print_sweep, write_sweep_report
from steerlens.report.tracking.tables import answer_rows, table_rows
from steerlens.results import (
    COVERAGE,
    FEATURES,
    NULL_SCORES,
    PAGE_FILE,
    STEERING,
    SUMMARY_FILE,
    Table,
)
from steerlens.results.folder import TABLE_OF, RunTables, read_settings, read_tables
from steerlens.results.pmi import Pmi
from steerlens.results.replace import written_files
from steerlens.results.status import LEFT_OUT, STATUS_FILE, refuse_foreign
from steerlens.runs.sweep.jobs import Job, Settings, find_jobs, read_summary, settings_of
from steerlens.storage.files import SWEEP_FILE, make_folder, read_json, write_json

BEST_ROWS = 100
"""Features of each series that W&B shows."""

JOINED = (
    (FEATURES, "features"),
    (STEERING, "steering"),
    (COVERAGE, "coverage"),
    (NULL_SCORES, "null_scores"),
)
"""Tables of which all jobs' rows are written, and where `RunTables` has them."""

SPREAD = ("layer", "shard")
"""Settings of which all values together are one result: the same run would have them all."""


@dataclass(frozen=True)
class Joined:
    """What a join has found."""

    folder: Path
    jobs: list[Job]
    series: list[Series]

    @property
    def complete(self) -> bool:
        """Say whether every job is done."""
        return all(job.state in ("done", LEFT_OUT) for job in self.jobs)


def is_sweep(folder: Path) -> bool:
    """Return whether `folder` is that of a multirun, rather than of a run."""
    return (folder / SWEEP_FILE).is_file()


def join_sweep(folder: Path, again: bool = False, show: bool = True) -> Joined:
    """Join the sweep in `folder`, into the same folder; see `join`."""
    return join([folder], folder, again, show)


def join(folders: Sequence[Path], into: Path, again: bool = False, show: bool = True) -> Joined:
    """Join the jobs of sweeps, and runs, and write their results into the folder `into`.

    - `features.parquet`, `steering.parquet`, `coverage.parquet`, `null.parquet`: all rows, with
      the column `job` and one for every setting in which jobs differ; random directions that shards
      share are there once
    - `sweep.csv`: one row per job
    - `summary.json`, `report.md`, `figures/`: by series, which are the jobs that differ in nothing
      but layer and shard

    Jobs without results are listed with their reason, and left out of everything else.

    Args:
        folders: of multiruns or of runs.
        into: where the result goes.
        again: also where nothing has changed.
        show: print the result where nothing has changed, too.

    Raises:
        SteerlensError: a folder holds no sweep and no run, or can't be written.
    """
    jobs, series, settings, left_out = _read(folders)
    joined = Joined(into, jobs, series)
    stamp = [[job.name, job.state, job.reason, _finished(job)] for job in jobs]
    record = read_json(into / SWEEP_FILE)
    record = record if isinstance(record, dict) else {}
    changed = record.get("joined") != stamp
    if changed or again:
        refuse_foreign(into)
        make_folder(into)
        earlier = {*written_files(into)}
        for table, field in JOINED:
            frames = [getattr(member.tables, field) for member in series]
            if frames := [frame for frame in frames if len(frame) or table is FEATURES]:
                table.write(pd.concat(frames, ignore_index=True), into, also_by=["job"])
            else:
                (into / table.file).unlink(missing_ok=True)
        rows = _rows(jobs, settings)
        of_jobs = [read_settings(job.folder).get("paths") or {} for job in jobs]
        wants_page = not any(paths.get("report") is False for paths in of_jobs)
        summary, figures = write_sweep_report(rows, series, left_out, into, wants_page)
        new = {path for paths in figures.values() for path in paths}
        for path in earlier - {*written_files(into)} - new:
            path.unlink(missing_ok=True)
        _track(joined, rows, summary, figures)
        write_json(into / SWEEP_FILE, {**record, "joined": stamp})
    if changed or again or show:
        study = (read_json(into / SUMMARY_FILE) or {}).get("study")
        print_sweep(_rows(jobs, settings), series, study, into)
    return joined


def read_series(folder: Path) -> list[Series]:
    """Return the finished results in the folder of a sweep or a run; see `join`."""
    return _read([folder])[1]


def _read(
    folders: Sequence[Path],
) -> tuple[list[Job], list[Series], dict[str, Settings], list[str]]:
    """Return all jobs, the results of those that are done, what they differ in, what can't be
    joined.
    """
    jobs = _jobs(folders)
    tables: dict[str, RunTables] = {}
    for index, job in enumerate(jobs):
        if job.state != "done":
            continue
        try:
            tables[job.name] = read_tables(job.folder)
        except SteerlensError as error:
            jobs[index] = job.without(str(error))
    settings = settings_of(jobs)
    left_out = _say_where_from(tables, settings)
    series = _series([job for job in jobs if job.name in tables], tables, settings)
    return jobs, series, settings, left_out


def _jobs(folders: Sequence[Path]) -> list[Job]:
    if len(folders) == 1:
        return find_jobs(folders[0])
    jobs = []
    for folder in folders:
        for job in find_jobs(folder):
            name = job.name if job.overrides is None else f"{folder.resolve().name}/{job.name}"
            jobs.append(job.renamed(name))
    return jobs


def _finished(job: Job) -> str | None:
    status = read_json(job.folder / STATUS_FILE)
    return str(status.get("finished")) if isinstance(status, dict) else None


def _series(
    jobs: Sequence[Job], tables: dict[str, RunTables], settings: dict[str, Settings]
) -> list[Series]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        apart = {key: value for key, value in settings[job.name].items() if key not in SPREAD}
        label = ", ".join(f"{key}={value}" for key, value in apart.items())
        groups.setdefault(label, []).append(job)
    of_series = []
    for label, members in groups.items():
        members = sorted(members, key=lambda job: parse_shard(settings[job.name].get("shard")))
        merged = merge([tables[job.name] for job in members])
        seconds = [job.seconds for job in members if job.seconds is not None]
        of_series.append(
            Series(
                label or "all jobs",
                [job.name for job in members],
                merged,
                settings={k: v for k, v in settings[members[0].name].items() if k not in SPREAD},
                seconds=sum(seconds) if seconds else None,
            )
        )
    return of_series


def merge(parts: Sequence[RunTables]) -> RunTables:
    """Return runs of different layers, or parts of each layer's features, as the one run of all of
    them.

    Every row is that of its own run: best factors and PMI depend on nothing but the feature.
    """
    if len(parts) == 1:
        return parts[0]
    pmis = [part.pmi for part in parts if part.pmi is not None]
    tables: dict[str, Any] = {
        name: _of_all(table, [getattr(part, name) for part in parts])
        for name, table in TABLE_OF.items()
    }
    return RunTables(
        **tables,
        chat_template=parts[0].chat_template,
        study=parts[0].study,
        choice=parts[0].choice,
        operator=parts[0].operator,
        lens=parts[0].lens,
        late_from=parts[0].late_from,
        pmi=_merge_pmi(pmis) if pmis else None,
    )


def _of_all(table: Table, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all parts by layer, each once: several shards have those of their SAEs."""
    rows = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    if "layer" not in table.keys:
        return rows
    rows = table.frame(rows.sort_values("layer", kind="stable", ignore_index=True))
    if "feature" in table.keys:
        return rows
    return rows.drop_duplicates(list(table.keys), ignore_index=True)


def _merge_pmi(parts: Sequence[Pmi]) -> Pmi:
    pairs = pd.concat([part.pairs for part in parts], ignore_index=True)
    reasons = dict.fromkeys(reason for part in parts for reason in part.dropped)
    dropped = {reason: sum(part.dropped.get(reason, 0) for part in parts) for reason in reasons}
    return Pmi(
        pairs.sort_values("layer", kind="stable", ignore_index=True), parts[0].windows, dropped
    )


def _say_where_from(tables: dict[str, RunTables], settings: dict[str, Settings]) -> list[str]:
    """Add to all tables the column `job` and one for each setting; gives, in sentences, which
    columns can't be joined, and leaves them out.
    """
    left_out: list[str] = []
    for table, field in JOINED:
        frames = {name: getattr(table, field) for name, table in tables.items()}
        clashes = _clashes(frames)
        left_out += [f"{table.file}: {why}" for why in clashes.values()]
        added = dict.fromkeys(key for name in frames for key in settings[name])
        for name, frame in frames.items():
            columns = {key: settings[name].get(key) for key in added if key not in table.columns}
            frame = frame.drop(columns=list(clashes), errors="ignore").assign(job=name, **columns)
            tables[name] = replace(tables[name], **{field: frame})
    return left_out


def _clashes(frames: dict[str, pd.DataFrame]) -> dict[str, str]:
    """Return columns that hold numbers in one job and something else in another, and where."""
    kinds: dict[str, dict[str, str]] = {}
    for name, frame in frames.items():
        for column in frame.columns[frame.notna().any().tolist()]:
            kind = "numbers" if getattr(frame[column].dtype, "kind", "") in "iufb" else "texts"
            if str(frame[column].dtype).startswith("list"):
                kind = "lists"
            kinds.setdefault(str(column), {}).setdefault(kind, name)
    return {
        column: f"the column {column!r} holds "
        + " and ".join(f"{kind} in job {name}" for kind, name in jobs_of.items())
        + ", so it is only in the jobs' own tables."
        for column, jobs_of in kinds.items()
        if len(jobs_of) > 1
    }


def _rows(jobs: Sequence[Job], settings: dict[str, Settings]) -> pd.DataFrame:
    """Return `sweep.csv`: what each job was, and its main numbers."""
    columns = dict.fromkeys(key for settings_of_job in settings.values() for key in settings_of_job)
    rows = pd.DataFrame(
        [
            {
                "job": job.name,
                "state": job.state,
                **{key: settings[job.name].get(key) for key in columns},
                **_numbers(read_summary(job) if job.state == "done" else {}),
                "seconds": job.seconds,
                "reason": job.reason,
            }
            for job in jobs
        ],
        columns=["job", "state", *columns, *_numbers({}), "seconds", "reason"],
    )
    return rows.astype({"n_features": "Int64"})


def _numbers(summary: dict[str, Any]) -> dict[str, Any]:
    overall = summary.get("overall") or {}
    steering = summary.get("steering") or {}
    payoff = (steering.get("payoff") or {}).get("0.1") or {}
    best = steering.get("best_factor") or {}
    return {
        "n_features": overall.get("features"),
        "output_score_median": overall.get("output_score_median"),
        "output_features": overall.get("output_score_at_least_0.1"),
        "null_output_features": overall.get("output_score_null_at_least_0.1"),
        "input_score_median": overall.get("input_score_median"),
        "hybrid_ratio": (summary.get("hybrids") or {}).get("ratio"),
        "success_20": best.get("success_20"),
        "perplexity": best.get("perplexity"),
        "payoff": (payoff.get("over_unfiltered") or {}).get("value"),
        "payoff_within_layers": (payoff.get("over_unfiltered_within_layers") or {}).get("value"),
        "objective": (summary.get("objective") or {}).get("value"),
    }


def _track(
    joined: Joined, rows: pd.DataFrame, summary: dict[str, Any], figures: dict[str, list[Path]]
) -> None:
    """One W&B run for the whole sweep, in the group of its jobs; the same one each time."""
    finished = next((job for job in joined.jobs if job.state == "done"), None)
    config = (
        TrackingConfig(**(read_settings(finished.folder).get("tracking") or {}))
        if finished
        else None
    )
    if finished is None or config is None:
        return
    id = hashlib.sha256(f"{config.group} {joined.folder.name}".encode()).hexdigest()[:16]
    tracker = tracking.start(replace(config, name="summary"), joined.folder, summary, id)
    tracker.log_rows("sweep", rows.astype(object).where(rows.notna(), None).to_dict("records"))
    for member in joined.series:
        best = table_rows(best_features(member.tables.features, BEST_ROWS))
        tracker.log_rows(f"features/{member.label}", best)
    for name, answered in answer_rows(summary).items():
        tracker.log_rows(name, answered)
    tracker.log_figures(figures)
    tracker.log_page(joined.folder / PAGE_FILE)
    tracker.finish(summary)
