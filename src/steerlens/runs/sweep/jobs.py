"""The jobs of a sweep: what each was asked for, whether it is done, and what tells them apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from steerlens.config.schema import RunConfig
from steerlens.config.score_keys import in_short
from steerlens.config.shipped import shipped_name
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES, SUMMARY_FILE
from steerlens.results.folder import ASIDE, read_settings, unfinished
from steerlens.results.status import LEFT_OUT, begin, read_status
from steerlens.storage.files import CONFIG_FILE, JOB_FILE, SWEEP_FILE, read_json, write_json
from steerlens.storage.provenance import PROVENANCE_FILE, code_digest

Settings = dict[str, str]


@dataclass(frozen=True)
class Job:
    """One job of a sweep, or a run that is joined with others."""

    folder: Path
    name: str
    state: str
    """done, failed, interrupted, running, died, missing, or left out."""
    reason: str | None
    """Why it isn't done; of one that is, what it had to leave out."""
    seconds: float | None
    overrides: Settings | None
    """What its command line said; null for a run that was no job."""

    def renamed(self, name: str) -> Job:
        """Return the same job by another name."""
        return replace(self, name=name)

    def without(self, reason: str) -> Job:
        """Return the same job, whose results can't be used."""
        return replace(self, state="unreadable", reason=reason)


def start_job(
    folder: Path,
    sweep_dir: Path,
    config: RunConfig,
    overrides: Sequence[str],
    missing: str | None = None,
) -> bool:
    """Note in the job's folder what it is asked for; return whether it has done that already.

    `status.json` has the state and the key of what is asked in one file: a job whose key isn't
    that of its state isn't done.

    Args:
        folder: the job's own.
        sweep_dir: the sweep's.
        config: what is asked for.
        overrides: what the command line says of it.
        missing: what of it can't be had, and what `config` therefore doesn't ask for.

    Raises:
        SteerlensError: another process runs the job.
    """
    sweep = read_json(sweep_dir / SWEEP_FILE)
    key = job_key(config)
    status = read_status(folder)
    finished = (
        status.get("state") == "done"
        and status.get("key", _key_of_record(folder)) == key
        and (folder / FEATURES.file).is_file()
    )
    id = sweep.get("id") if isinstance(sweep, dict) else None
    words = [word.lstrip("+").partition("=") for word in overrides]
    settings = {in_short(name, [*config.score]): value for name, _, value in words}
    if not finished:
        # First, so that what another job has finished never stands under this one's settings.
        begin(folder, key)
    record = {"sweep": id, "key": key, "overrides": settings, "missing": missing}
    write_json(folder / JOB_FILE, record)
    return finished


def _key_of_record(folder: Path) -> str | None:
    """Return the key of a job by an earlier version, whose `status.json` has none."""
    record = read_json(folder / JOB_FILE)
    return record.get("key") if isinstance(record, dict) else None


def job_key(config: RunConfig) -> str:
    """Digest of all that a job's files depend on: settings, code, libraries, and input files."""
    settings = {name: value for name, value in asdict(config).items() if name not in ASIDE}
    inputs = {str(path): _stamps(path) for path in _paths(settings)}
    text = json.dumps([settings, inputs, code_digest((".",))], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _paths(settings: Any) -> list[Path]:
    """Return the files and folders that settings name."""
    if isinstance(settings, Mapping):
        return [path for value in settings.values() for path in _paths(value)]
    if not isinstance(settings, str) or not re.search(r"[/\\]|\w\.\w", settings):
        return []
    try:
        path = Path(settings)
        return [path] if path.exists() else []
    except OSError:  # a long text is no path
        return []


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    files = [path] if path.is_file() else sorted([*path.glob("*"), *path.glob("*/*")])
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def find_jobs(folder: Path) -> list[Job]:
    """Return the jobs of the sweep in `folder`, by number, missing ones included; a run is its own
    job.

    Jobs that an earlier sweep of another command has left in the same folder are not among them.

    Raises:
        SteerlensError: the folder holds neither.
    """
    sweep = read_json(folder / SWEEP_FILE)
    if not isinstance(sweep, dict):
        if (folder / CONFIG_FILE).is_file():
            return [_job(folder, folder.resolve().name, None)]
        reason = "is no folder" if not folder.is_dir() else "holds no sweep and no run"
        raise SteerlensError(f"{folder} {reason}; give the folder of a multirun or of a run.")
    jobs = []
    for file in [file for depth in ("*", "*/*") for file in folder.glob(f"{depth}/{JOB_FILE}")]:
        record = read_json(file)
        if isinstance(record, dict) and record.get("sweep") == sweep.get("id"):
            name = file.parent.relative_to(folder).as_posix()
            job = _job(file.parent, name, record.get("overrides") or {})
            jobs.append(replace(job, reason=job.reason or record.get("missing")))
    names = {job.name for job in jobs}
    if isinstance(sweep.get("jobs"), int) and all(name.isdecimal() for name in names):
        jobs += [
            Job(folder / name, name, "missing", "it was never started", None, {})
            for name in map(str, range(sweep["jobs"]))
            if name not in names
        ]
    return sorted(jobs, key=lambda job: _natural(job.name))


def _job(folder: Path, name: str, overrides: Settings | None) -> Job:
    status = read_status(folder)
    state = str(status.get("state", "missing"))
    reason = status.get("reason")
    if state == "missing":
        reason = "it was never started, or killed at once"
    elif state != LEFT_OUT and "earlier" not in status:
        reason = unfinished(folder)
    return Job(folder, name, state, reason, _seconds(status), overrides)


def _seconds(status: Mapping[str, Any]) -> float | None:
    try:
        start, end = (datetime.fromisoformat(status[name]) for name in ("started", "finished"))
    except (KeyError, TypeError, ValueError):
        return None
    return (end - start).total_seconds()


def _natural(name: str) -> list[tuple[int, str]]:
    """Return `10` after `9`."""
    pieces = re.split(r"(\d+)", name)
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def settings_of(jobs: Sequence[Job], resolved: bool = False) -> dict[str, Settings]:
    """Return, for every job, by name, the settings in which any two of the jobs differ.

    What the command lines said, or if `resolved`, and where a run was no job, all of the
    configurations.
    """
    if not resolved and all(job.overrides is not None for job in jobs):
        every = {job.name: dict(job.overrides or {}) for job in jobs}
    else:
        every = {job.name: _flat(read_settings(job.folder)) for job in jobs}
    keys = dict.fromkeys(key for settings in every.values() for key in settings)
    keys = [key for key in keys if key.partition(".")[0].partition("/")[0] not in ASIDE]
    settings_of_jobs = [
        settings for settings in every.values() if settings
    ]  # a job that failed early has none
    # What ships is the same wherever it is installed, unless its SAEs are others.
    is_shipped_alike = _ship_the_same_saes(jobs)
    differ = []
    for key in keys:
        values = {settings.get(key) for settings in settings_of_jobs}
        if len({shipped_name(value) for value in values} if is_shipped_alike else values) > 1:
            differ.append(key)
    # An option of a group changes many keys: its name says it all.
    chosen = [key.rpartition(".")[0] for key in differ if key.endswith((".name", ".method"))]
    names = [key for key in differ if not key.startswith(tuple(f"{group}." for group in chosen))]
    renamed = {f"{group}.{last}": group for group in chosen for last in ("name", "method")}
    names += [key for key in renamed if key in differ]
    return {
        name: {renamed.get(key, key): settings[key] for key in names if key in settings}
        for name, settings in every.items()
    }


def _ship_the_same_saes(jobs: Sequence[Job]) -> bool:
    """Return whether no two jobs have read other files as the same layer of the same release."""
    files_of: dict[tuple[object, str], object] = {}
    for job in jobs:
        release = shipped_name((read_settings(job.folder).get("sae") or {}).get("path"))
        provenance = read_json(job.folder / PROVENANCE_FILE)
        saes = provenance.get("saes") if isinstance(provenance, dict) else None
        for layer, sae in (saes or {}).items():
            files = (sae or {}).get("files")
            if files_of.setdefault((release, layer), files) != files:
                return False
    return True


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Settings:
    flat: Settings = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else str(value)
    return flat


def read_summary(job: Job) -> dict[str, Any]:
    """Return the job's `summary.json`; empty if there is none."""
    summary = read_json(job.folder / SUMMARY_FILE)
    return summary if isinstance(summary, dict) else {}
