"""Which concepts a folder holds, told before any of their texts is read."""

from __future__ import annotations

from pathlib import Path

from steerlens.data.concept_sets.axbench import concept_names, has_metadata
from steerlens.data.concept_sets.contrast import contrast_files


def holds_pairs(path: Path) -> bool:
    """Return whether a folder holds contrast pairs, rather than AxBench's tables."""
    return not has_metadata(path) and bool(contrast_files(path))


def names_of_folder(path: Path) -> list[str]:
    """Return the names of a folder's concepts, without their texts.

    Raises:
        SteerlensError: it holds none, or they can't be read.
    """
    if holds_pairs(path):
        return [file.stem for file in contrast_files(path)]
    return concept_names(path)
