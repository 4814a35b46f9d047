"""What a judge is given and what it gives back, whoever the judge is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from steerlens.judges.cost import Cost, Estimate

CONCEPT, INSTRUCTION, FLUENCY = "concept", "instruction", "fluency"
ASPECTS = (CONCEPT, INSTRUCTION, FLUENCY)
VALUES = (0, 1, 2)

UNPARSABLE = "unparsable"
"""The judge answered, but no rating can be read."""
UNANSWERED = "unanswered"
"""The request failed for good."""
BUDGET = "budget"
"""It wasn't asked: the budget was reached."""
UNMEASURED = "unmeasured"
"""lexical: the text has no number that the rating is made from."""


@dataclass(frozen=True)
class Item:
    """A text to be rated. For a model that continues prompts, the prompt belongs to the text."""

    text: str
    concept: str
    instruction: str | None = None
    """What the text answers; None for a model that follows none: then it isn't rated."""
    perplexity: float | None = None
    """For lexical alone."""
    degeneracy: float | None = None
    """For lexical alone; see `metrics.degeneracy`."""


@dataclass(frozen=True)
class Rating:
    """One text in one aspect."""

    value: int | None
    """0, 1 or 2; None where there is none."""
    missing: str | None = None
    """Why the judge has given no rating. With `judge.unparsable_is_zero` there is a value all the
    same."""
    detail: str = ""
    """What it answered, or what went wrong."""


@dataclass(frozen=True)
class Rated:
    """What a judge has said of some items."""

    judge: str
    """Its name, to stand beside every number."""
    kind: str
    """`lexical` or `llm`: the columns begin with it, so that the two never share one."""
    ratings: Sequence[Mapping[str, Rating]]
    """By aspect, for every item in its order; an aspect that isn't rated isn't there."""
    cost: Cost = field(default_factory=Cost)
    stopped: str | None = None
    """Why some were not asked for, in a sentence; None if the result is whole."""

    def columns(self) -> dict[str, list[int | None] | list[str | None]]:
        """Return `{kind}_{aspect}` and `{kind}_{aspect}_missing` (why there is none), one entry per
        item.

        Only of aspects that at least one item is rated in.
        """
        columns_of: dict[str, list[int | None] | list[str | None]] = {}
        nothing = Rating(None)
        for aspect in ASPECTS:
            if any(aspect in rating for rating in self.ratings):
                column = [rating.get(aspect, nothing) for rating in self.ratings]
                columns_of[f"{self.kind}_{aspect}"] = [rating.value for rating in column]
                columns_of[f"{self.kind}_{aspect}_missing"] = [rating.missing for rating in column]
        return columns_of

    def missing(self) -> dict[str, Counter[str]]:
        """Return how many ratings of each aspect the judge hasn't given, by why."""
        counts: dict[str, Counter[str]] = {}
        for rating in self.ratings:
            for aspect, aspect_rating in rating.items():
                counts.setdefault(aspect, Counter())
                if aspect_rating.missing is not None:
                    counts[aspect][aspect_rating.missing] += 1
        return counts


def nothing(_n_done: int) -> None:
    """Show no progress."""


class Judge(Protocol):
    """The one interface of all judges."""

    @property
    def name(self) -> str:
        """Give what tables call the judge."""
        ...

    def check(self) -> None:
        """Refuse a key, model or server that can't work, before any text is made. Costs nothing."""
        ...

    def estimate(self, items: Sequence[Item]) -> Estimate:
        """Return what rating `items` will take."""
        ...

    def rate(
        self,
        items: Sequence[Item],
        progress: Callable[[int], None] = nothing,
        spent_usd: float = 0.0,
    ) -> Rated:
        """Rate `items`; `progress` is called with the number of ratings that are just done.

        `spent_usd` is what earlier ratings of the run have taken from its budget.
        """
        ...


def aspects_of(item: Item) -> tuple[str, ...]:
    """Return what an item can be rated in."""
    return ASPECTS if item.instruction is not None else (CONCEPT, FLUENCY)
