"""Scoring methods by name: the entry points of the group `steerlens.scores`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from steerlens.errors import SteerlensError, unknown

GROUP = "steerlens.scores"


@dataclass
class ScoreConfig:
    """What every method's settings begin with."""

    method: str = "???"
    """Name of the method's entry point."""


def methods() -> dict[str, EntryPoint]:
    """Every installed method by name, not yet imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_method(name: str) -> Any:
    """The module of method `name`, a `steerlens.scores.Method`.

    Refuses an unknown name, and a module without `Config` and `score`.
    """
    found = methods()
    if name not in found:
        raise unknown("scoring method", name, found)
    module = found[name].load()
    for attribute in ("Config", "score"):
        if not hasattr(module, attribute):
            raise SteerlensError(
                f"scoring method {name!r} ({found[name].value}) has no {attribute!r}; "
                "see CONTRIBUTING.md, 'Add a scoring method'."
            )
    return module
