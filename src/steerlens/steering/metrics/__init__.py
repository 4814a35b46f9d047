"""Metrics of generated texts: one module each, by name in `METRICS`.

A metric is a module with

- a first docstring line that says what it measures;
- `Config`, a dataclass: the metric's settings;
- `measure(texts, subject, config, run)`, which returns columns of `generations.parquet`, each with
  one entry per text, in the order of `texts`. A text's numbers must not depend on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.steering.metrics import degeneracy, perplexity, success
from steerlens.steering.metrics.texts import MetricRun, Texts

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

__all__ = ["METRICS", "Metric", "MetricRun", "Texts"]


class Metric(Protocol):
    """The interface of a metric's module."""

    __name__: str
    __doc__: str | None
    Config: type[Any]

    def measure(
        self, texts: Texts, subject: Subject, config: Any, run: MetricRun
    ) -> Mapping[str, Sequence[Any]]: ...


METRICS: Mapping[str, Metric] = {
    "success": success,
    "perplexity": perplexity,
    "degeneracy": degeneracy,
}
