"""A run's results in a folder that has an earlier run's: replaced whole, or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steerlens.results import FEATURES, PAGE_DATA, PAGE_FILE, REPORT_FILE, SUMMARY_FILE, TABLES
from steerlens.results.pmi import PMI_FILE
from steerlens.results.reference import REFERENCE, REFERENCE_FILE
from steerlens.results.status import Status
from steerlens.storage.files import CONFIG_FILE, make_folder, read_json
from steerlens.storage.provenance import PROVENANCE_FILE

ASIDE = ".unfinished"
"""The folder, in that of a run, of results that will take the place of an earlier run's."""

FILES = (
    *(table.file for table in (*TABLES, REFERENCE)),
    *(REFERENCE_FILE, PMI_FILE, SUMMARY_FILE, REPORT_FILE, PAGE_FILE, PROVENANCE_FILE, CONFIG_FILE),
)
"""What a run writes beside its figures and its study's tables."""

_PICTURE = re.compile(r"!\[[^\]]*\]\((figures/[\w.-]+)\.png\)")


@contextmanager
def replacing(status: Status) -> Iterator[Path]:
    """Give the folder to write a run's results to.

    That is the run's own; where that holds the results of an earlier run, another one, whose
    results take their place at the end. If the block fails, the earlier results stay; of an
    earlier run that wasn't finished, only where there are no new ones.
    """
    folder = status.folder
    shutil.rmtree(folder / ASIDE, ignore_errors=True)  # of a run that was killed
    earlier = status.earlier
    if earlier is None:
        remove_results(folder)
        yield folder
        return
    try:
        try:
            yield make_folder(folder / ASIDE)
        except BaseException:
            if earlier["state"] != "done" and (folder / ASIDE / FEATURES.file).is_file():
                _replace(status)
            raise
        _replace(status)
    finally:
        shutil.rmtree(folder / ASIDE, ignore_errors=True)


def _replace(status: Status) -> None:
    """Put the results that were written aside in the place of the earlier run's."""
    remove_results(status.folder)
    status.replaced()
    _move(status.folder / ASIDE, status.folder)


def written_files(folder: Path) -> list[Path]:
    """List what runs, sweeps and comparisons have written as results into `folder`, by name.

    Figures are those that its report shows, tables of a study those that its summary names.
    """
    summary = read_json(folder / SUMMARY_FILE)
    study = summary.get("study") if isinstance(summary, dict) else None
    tables = study.get("tables") if isinstance(study, dict) else None
    names = [*FILES, *(f"{name}.csv" for name in tables or {} if Path(name).name == name)]
    try:
        report = (folder / REPORT_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        report = ""
    names += [f"{name}.{end}" for name in _PICTURE.findall(report) for end in ("png", "pdf")]
    files = [path for name in names if (path := folder / name).is_file()]
    return [*files, *sorted((folder / PAGE_DATA).glob("*.js"))]


def remove_results(folder: Path) -> None:
    """Remove what an earlier run has written as results: it would pass for the next one's."""
    for path in written_files(folder):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it isn't there, or somebody else's files are in it
        (folder / PAGE_DATA).rmdir()


def _move(source: Path, target: Path) -> None:
    """Move all files; the table of features, which makes a folder one of results, comes last."""
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda file: file.name == FEATURES.file):
        (target / file.parent).mkdir(parents=True, exist_ok=True)
        (source / file).replace(target / file)
