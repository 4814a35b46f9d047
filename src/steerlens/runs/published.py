"""Published numbers shown as if they were a run of ours; no model is loaded."""

from __future__ import annotations

from pathlib import Path

from steerlens.config.reference import COLUMNS, cache_file
from steerlens.config.schema import ReferenceConfig
from steerlens.results import CONCEPTS, FEATURES, RATINGS
from steerlens.results.reference import Reference
from steerlens.runs.run_folder import RunFolder
from steerlens.storage.provenance import file_identity


def write_published_scores(
    reference: Reference, config: ReferenceConfig, cache_dir: Path, folder: RunFolder
) -> None:
    """Write the table of published scores."""
    files = [cache_file(config, key) for key in ("features", *COLUMNS)]
    folder.note(reference=[file_identity(file, cache_dir) for file in files if file])
    folder.add(FEATURES, reference.table)
    folder.write_provenance()


def write_published_ratings(ratings: Path, cache_dir: Path, folder: RunFolder) -> None:
    """Write the published ratings of steered texts, which lie in the folder `ratings`."""
    from steerlens.judges.published import as_tables, read_published

    published = read_published(ratings)
    for finding in published.findings:
        print(finding)
    for table, rows in zip((FEATURES, CONCEPTS, RATINGS), as_tables(published), strict=True):
        folder.add(table, rows)
    folder.note(
        reference=[file_identity(file, cache_dir) for file in published.files],
        findings=published.findings,
    )
    folder.write_provenance()
