"""What work on a subject may know of the run around it: memory, seed, progress, corpus, store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.config.schema import CorpusConfig, LensConfig
from steerlens.data.corpus import identity
from steerlens.storage.provenance import file_identity
from steerlens.storage.store import Store

if TYPE_CHECKING:
    from steerlens.engine.activations import Activations
    from steerlens.engine.prompts import PromptStates
    from steerlens.engine.subject import Subject


def no_progress(_n_done: int, _n_unneeded: int = 0) -> None:
    """Show nothing of what has been done."""


def _no_subjects(_layer: int) -> Iterable[Subject]:
    return ()


@contextmanager
def _no_bar(
    _total: int | None, _description: str, _unit: str, each: int = 1
) -> Iterator[Callable[..., None]]:
    yield no_progress


@dataclass
class GroupCache:
    """What is computed once for a group of SAEs, however many methods ask for it.

    It is dropped with its group, so that only one group's activations are in memory.
    """

    activations: dict[tuple[str, int], Activations] = field(default_factory=dict)
    """What passes over the corpus have found, by hook name and context length."""
    prompts: dict[tuple[str, str, bool, bool], Any] = field(default_factory=dict)
    """What `steered_prompt` has made, by hook name, prompt, `keep_error` and template."""
    null_scores: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Output scores of random directions, by hook name and settings."""
    lens_tokens: dict[str, Any] = field(default_factory=dict)
    """Token ids (F, k) of the run's lens, by hook name; -1 where nobody has asked."""
    jacobians: dict[str, Any] = field(default_factory=dict)
    """Mean Jacobians from the SAEs' hooks, by hook name."""
    later: dict[tuple[str, int | None], list[Subject]] = field(default_factory=dict)
    """The subjects after each, by its hook name and how many are wanted."""
    prompt_states: PromptStates = field(default_factory=dict)
    """What prompts have left in the model, from which texts go on."""


@dataclass(frozen=True)
class RunContext:
    """What a method may know of the run around it; steering, too."""

    memory_budget: int = 2 * 1024**3
    """Bytes that scoring may use beyond the weights."""
    seed: int = 0
    progress: Callable[[int], None] = no_progress
    """Called with the number of features that have just been finished."""
    task: Callable[..., AbstractContextManager[Callable[..., None]]] = _no_bar
    """A progress bar (total, description, unit; `each`: how often each unit is gone through) for
    work that isn't counted in features."""
    corpus: CorpusConfig | None = None
    """The run's corpus."""
    lens: LensConfig = field(default_factory=LensConfig)
    """What tells the tokens that a feature promotes."""
    layers: tuple[int, ...] = ()
    """The layers whose SAEs the run looks at, so that what serves all of them is computed once; ()
    = not known."""
    examples: str | None = None
    """File of examples of the run's SAE that stands for the corpus."""
    store: Store | None = None
    """Where finished scores are kept."""
    later: Callable[[int], Iterable[Subject]] = _no_subjects
    """Loads the SAEs of the run's layers after this one, in rising order."""
    cache: GroupCache = field(default_factory=GroupCache)
    """What has been computed for the group of SAEs that is worked on."""

    @property
    def prompt_bytes(self) -> int:
        """Give the bytes of `memory_budget` that are for what prompts have left."""
        return self.memory_budget // 8

    def for_group(self) -> RunContext:
        """Give the same context for another group of SAEs, of which nothing is computed yet; what
        prompts have left in the model is the same for all.
        """
        return replace(self, cache=GroupCache(prompt_states=self.cache.prompt_states))

    def later_subjects(self, subject: Subject, at_most: int | None = None) -> list[Subject]:
        """Return the run's subjects of layers after `subject`'s, the nearest first, loaded once.

        Args:
            subject: model and SAE.
            at_most: how many are wanted; None = all.
        """
        key = (subject.hook_name, at_most)
        if key not in self.cache.later:
            self.cache.later[key] = list(islice(self.later(subject.layer), at_most))
        return self.cache.later[key]

    def examples_key(self) -> dict[str, Any] | None:
        """Return which examples stand for the corpus, for the store."""
        if self.examples is None or self.store is None:
            return None
        return file_identity(Path(self.examples), self.store.root)

    def corpus_key(self) -> dict[str, Any] | None:
        """Return what the corpus is, for the store."""
        if self.corpus is None or self.store is None:
            return None
        facts = identity(self.corpus, self.store.root)
        return {**facts, "context_length": self.corpus.context_length}


ScoreRun = RunContext
"""What it was called before; plug-ins may name it."""
