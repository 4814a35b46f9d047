"""What a method learns from: the labelled texts of some concepts on one subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from steerlens.engine.generation.sampling import row_seed
from steerlens.engine.intervention import looks_back
from steerlens.engine.run_context import RunContext, no_progress
from steerlens.errors import SteerlensError
from steerlens.steering.methods.labelled import Labelled, TokenVectors, token_vectors

if TYPE_CHECKING:
    from steerlens.data.concept_sets import Concept
    from steerlens.engine.subject import Subject


@dataclass(frozen=True)
class Task:
    """C concepts that are learnt together.

    What is drawn for a concept depends on the seed, the method and the concept, never on the others
    that it happens to be learnt with.
    """

    subject: Subject
    concepts: tuple[Concept, ...]
    labelled: Labelled
    memory_budget: int = 2 * 1024**3
    """Bytes for what a method runs at once."""
    progress: Callable[[int], None] = no_progress
    """Called with the number of concepts that a method has just finished, if that takes long."""
    ctx: RunContext = field(default_factory=RunContext)
    """The run around it, for a method that has the model write or scores features."""

    def __len__(self) -> int:
        return len(self.concepts)

    def refuse_looking_back(self, method: str) -> None:
        """Refuse an SAE whose activations depend on the positions before, for a method that reads
        vectors one by one.
        """
        if looks_back(self.subject.sae):
            name = self.subject.name
            raise SteerlensError(f"{method} can't read {name}: its activations look back.")

    @cached_property
    def vectors(self) -> TokenVectors:
        """Of all texts, read when a method first asks."""
        return token_vectors(self.subject, self.labelled.texts, self.memory_budget)

    def rng(self, concept: int, method: str, seed: int) -> np.random.Generator:
        """Return the random numbers of one concept and method."""
        key = row_seed(method, seed, self.concepts[concept].id)
        return np.random.Generator(np.random.Philox(key))
