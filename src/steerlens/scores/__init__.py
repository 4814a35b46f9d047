"""Scoring methods: one module each, in this room or in another package (`steerlens.scores`).

A method is a module with

- a first docstring line that says what it measures (shown by `steerlens list scores`);
- `Config`, a dataclass that extends `ScoreConfig`: the method's settings;
- `score(subject, features, config, ctx)`, which returns columns of `features.parquet`, each
  with one entry per feature, in the order of `features`. It is called with some of the features
  at a time, and what it returns is kept: a feature's numbers must not depend on the others.

Method modules import torch inside `score`, so that listing and checking settings stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.config.registry import ScoreConfig
from steerlens.engine.run_context import RunContext, ScoreRun

if TYPE_CHECKING:
    import numpy as np

    from steerlens.engine.subject import Subject

__all__ = ["Method", "RunContext", "ScoreConfig", "ScoreRun"]


class Method(Protocol):
    """The interface of a method's module."""

    __name__: str
    __doc__: str | None
    Config: type[ScoreConfig]

    def score(
        self, subject: Subject, features: np.ndarray, config: Any, ctx: RunContext
    ) -> Mapping[str, Sequence[Any] | np.ndarray]:
        """Score `features`, shape (n,); see CONTRIBUTING.md, 'Add a scoring method'."""
        ...
