"""Scoring methods: one module each, found through the entry-point group `steerlens.scores`.

A method is a module with

- a first docstring line that says what it measures (shown by `steerlens list scores`);
- `Config`, a dataclass that extends `ScoreConfig`: the method's settings;
- `score(subject, features, config, run)`, which returns columns of `features.parquet`, each
  with one entry per feature, in the order of `features`. It is called with some of the features
  at a time, and what it returns is kept: a feature's numbers must not depend on the others.

Method modules import torch inside `score`, so that listing and checking settings stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.config.schema import CorpusConfig
from steerlens.corpus import identity
from steerlens.registry import ScoreConfig
from steerlens.store import Store

if TYPE_CHECKING:
    import numpy as np

    from steerlens.activations import Activations
    from steerlens.subject import Subject

__all__ = ["Method", "ScoreConfig", "ScoreRun"]


def _nothing(_done: int, _unneeded: int = 0) -> None:
    pass


@contextmanager
def _no_bar(_total: int | None, _description: str, _unit: str) -> Iterator[Callable[..., None]]:
    yield _nothing


@dataclass(frozen=True)
class ScoreRun:
    """What a method may know of the run around it."""

    memory_budget: int = 2 * 1024**3
    """Bytes that scoring may use beyond the weights."""
    seed: int = 0
    progress: Callable[[int], None] = _nothing
    """Called with the number of features that have just been finished."""
    task: Callable[[int | None, str, str], AbstractContextManager[Callable[..., None]]] = _no_bar
    """A progress bar (total, description, unit) for work that isn't counted in features."""
    corpus: CorpusConfig | None = None
    """The run's corpus."""
    activations: dict[tuple[str, int], Activations] = field(default_factory=dict)
    """What passes over the corpus have found, by hook name and context length."""
    prompts: dict[tuple[str, str, bool], Any] = field(default_factory=dict)
    """What `steered_prompt` has made, by hook name, prompt and `keep_error`."""
    store: Store | None = None
    """Where finished scores are kept."""

    def corpus_key(self) -> dict[str, Any] | None:
        """What the corpus is, for the store."""
        if self.corpus is None or self.store is None:
            return None
        what = identity(self.corpus, self.store.root)
        return {**what, "context_length": self.corpus.context_length}


class Method(Protocol):
    """The interface of a method's module."""

    __name__: str
    __doc__: str | None
    Config: type[ScoreConfig]

    def score(
        self, subject: Subject, features: np.ndarray, config: Any, run: ScoreRun
    ) -> Mapping[str, Sequence[Any] | np.ndarray]: ...
