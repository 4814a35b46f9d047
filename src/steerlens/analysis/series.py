"""Results that are laid over each other: a sweep's, two runs', ours and somebody else's."""

from __future__ import annotations

from dataclasses import dataclass

from steerlens.results.folder import RunTables


@dataclass(frozen=True)
class Series:
    """One of several results in the same figure or table."""

    label: str
    jobs: list[str]
    """Names of the jobs that it was merged from."""
    tables: RunTables
