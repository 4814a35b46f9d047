"""What work on a subject may know of the run around it: memory, seed, progress, corpus, store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steerlens.config.schema import CorpusConfig
from steerlens.corpus import identity
from steerlens.store import Store

if TYPE_CHECKING:
    from steerlens.activations import Activations


def _nothing(_done: int, _unneeded: int = 0) -> None:
    pass


@contextmanager
def _no_bar(_total: int | None, _description: str, _unit: str) -> Iterator[Callable[..., None]]:
    yield _nothing


@dataclass(frozen=True)
class ScoreRun:
    """What a method may know of the run around it; steering, too."""

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
    prompts: dict[tuple[str, str, bool, bool], Any] = field(default_factory=dict)
    """What `steered_prompt` has made, by hook name, prompt, `keep_error` and template."""
    store: Store | None = None
    """Where finished scores are kept."""

    def corpus_key(self) -> dict[str, Any] | None:
        """What the corpus is, for the store."""
        if self.corpus is None or self.store is None:
            return None
        what = identity(self.corpus, self.store.root)
        return {**what, "context_length": self.corpus.context_length}
