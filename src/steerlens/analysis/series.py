"""Results that are laid over each other: a sweep's, two runs', ours and somebody else's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from steerlens.results.folder import RunTables


@dataclass(frozen=True)
class Series:
    """One of several results in the same figure or table."""

    label: str
    jobs: list[str]
    """Names of the jobs that it was merged from."""
    tables: RunTables
    settings: Mapping[str, str] = field(default_factory=dict)
    """Those in which it differs from the others."""
    seconds: float | None = None
    """What its jobs took; little where they found their results in the cache."""

    def of_layers(self, layers: Collection[int]) -> Series:
        """Return the same result of `layers` only."""
        return replace(self, tables=self.tables.of_layers(layers))
