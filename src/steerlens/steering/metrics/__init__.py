"""Metrics of generated texts: one module each, in this folder or in another package.

A metric is a module with

- a first docstring line that says what it measures;
- `Config`, a dataclass: the metric's settings, `metrics.NAME.KEY` of a run; it may have a `check()`
  that refuses what can't work before anything is loaded, and a field `enabled`, without which
  nothing is measured;
- `measure(texts, subject, config, run)`, which returns columns of `generations.parquet`, each with
  one entry per text, in the order of `texts`. A text's numbers must not depend on the others;
- `NEEDS_FEATURE = True`, if it can't be measured on texts that no feature was steered with;
- `USES_EVALUATOR = False`, if it doesn't look at the run's evaluator, so that its numbers are found
  again with another one;
- `OF_MODEL`, names of columns that don't depend on the run's evaluator, if there are some beside
  those that do, and `measure_model`, called as `measure`, which returns them. With an evaluator
  `measure` leaves them out, so that they are kept apart and another one measures nothing again.

Every metric that is enabled is measured on every text that it can be. Its numbers become columns of
the table of texts, and their means columns of the table of steering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.config.registry import loadable_parts
from steerlens.steering.metrics.texts import MetricRun, Texts

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

__all__ = [
    "Metric",
    "MetricRun",
    "Texts",
    "metrics",
    "needs_feature",
    "of_model_alone",
    "uses_evaluator",
]


class Metric(Protocol):
    """The interface of a metric's module."""

    __name__: str
    __doc__: str | None
    Config: type[Any]

    def measure(
        self, texts: Texts, subject: Subject, config: Any, run: MetricRun
    ) -> Mapping[str, Sequence[Any]]:
        """Measure every text."""
        ...


def metrics(of_features: bool = True) -> dict[str, Metric]:
    """Give every metric by name; of texts without a steered feature those that need none."""
    return {
        name: metric
        for name, metric in loadable_parts("metrics").items()
        if of_features or not needs_feature(metric)
    }


def needs_feature(metric: Metric) -> bool:
    """Return whether a metric looks at what its texts were steered toward."""
    return bool(getattr(metric, "NEEDS_FEATURE", False))


def uses_evaluator(metric: Metric) -> bool:
    """Return whether a metric may look at the run's evaluator."""
    return bool(getattr(metric, "USES_EVALUATOR", True))


def of_model_alone(metric: Metric) -> Sequence[str]:
    """Return the columns of a metric that looks at the evaluator which don't depend on it."""
    return getattr(metric, "OF_MODEL", ())
