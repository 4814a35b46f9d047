"""What a metric may know: the texts, and little of the run around them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    import numpy as np

    from steerlens.engine.generation import TextVectors
    from steerlens.engine.prompts import PromptStates
    from steerlens.engine.subject import LoadedModel


@dataclass(frozen=True)
class Texts:
    """Generated texts, column by column."""

    features: np.ndarray | None
    """(n,) int64: the feature that each text was steered with; None where it wasn't one."""
    prompts: Sequence[str]
    texts: Sequence[str]
    """Continuations, without the prompt."""
    token_ids: Sequence[Sequence[int]]
    """The new tokens as they were generated, a closing EOS included."""
    factors: Sequence[float] | None = None
    """Of each text; None = not known."""
    made_of: Callable[[], Sequence[TextVectors]] | None = None
    """Gives the vectors that each text was made of; None = they are not to be had."""

    def __post_init__(self) -> None:
        columns = (self.features, self.prompts, self.texts, self.token_ids)
        lengths = [len(column) for column in columns if column is not None]
        if len(set(lengths)) > 1:
            raise SteerlensError(f"columns of texts differ in length: {lengths}.")

    def __len__(self) -> int:
        return len(self.texts)


def _nothing(_n_texts: int) -> None:
    pass


@dataclass(frozen=True)
class MetricRun:
    """What a metric may know of the run around it."""

    memory_budget: int = 2 * 1024**3
    """Bytes that a metric may use beyond the weights."""
    progress: Callable[[int], None] = _nothing
    """Called with the number of texts that have just been measured."""
    concept: Sequence[str] = ()
    """What the run steers toward."""
    evaluator: LoadedModel | None = None
    """The model that judges texts; None = the subject's own, unsteered."""
    chat_template: bool = False
    """Whether prompts were requests inside a chat template, and texts the answers."""
    prompt_states: PromptStates | None = None
    """What prompts have left in the model where texts were generated."""


def without_closing(token_ids: Sequence[int], special: Collection[int]) -> Sequence[int]:
    """Return `token_ids` without the special token that ends them, if one does.

    Any special token, because models may stop at others than their tokenizer's EOS.
    """
    return token_ids[:-1] if len(token_ids) and token_ids[-1] in special else token_ids
