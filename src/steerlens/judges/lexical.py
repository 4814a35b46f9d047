"""judge=lexical: ratings without a model, by rules. Its numbers are never an LLM's, and never stand
in one column with them.

concept. A text is cut into words (runs of letters, digits and _, case folded) and single other
signs. A concept's vocabulary (`judges.vocabulary`) is learned from training texts; the rating is by
the share of the text's words that are in it: 0 below `present`, 2 from `shaped` on, 1 between.

fluency. The smaller of two ratings against the unsteered texts of the same run (`Reading`): by
perplexity, where only a large one counts against a text, and by degeneracy (repeated n-grams).

instruction. Not rated: no rule here can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from steerlens.config.judge import refuse_settings_of_others
from steerlens.config.prices import FREE
from steerlens.errors import SteerlensError
from steerlens.judges.cost import Estimate, estimate
from steerlens.judges.items import CONCEPT, FLUENCY, UNMEASURED, Item, Rated, Rating, nothing
from steerlens.judges.vocabulary import Vocabulary, share

if TYPE_CHECKING:
    from steerlens.config.schema import JudgeConfig
    from steerlens.judges import JudgeSettings

AS_UNSTEERED = 0.95
"""Quantile of the unsteered texts up to which a text reads like one of them."""
LEAST_DEGENERACY = 0.1
"""Repetition up to this is never held against a text, even where the unsteered ones have none."""
FEWEST = 5
"""Unsteered texts that it takes to say how they read."""


class Limits(NamedTuple):
    """2 up to `fluent`, 1 up to `readable`, 0 beyond."""

    fluent: float
    readable: float

    def rating(self, value: float) -> int:
        """Return the rating of a text with this value: 2, 1 or 0."""
        return 2 if value <= self.fluent else 1 if value <= self.readable else 0


@dataclass(frozen=True)
class Reading:
    """How unsteered texts read."""

    log_perplexity: Limits
    degeneracy: Limits


@dataclass(frozen=True)
class Lexicon:
    """All that judge=lexical knows."""

    vocabularies: Mapping[str, Vocabulary]
    """By concept."""
    reading: Reading


def fit_reading(perplexity: Sequence[float | None], degeneracy: Sequence[float | None]) -> Reading:
    """Return the limits of fluency from the unsteered texts' numbers; null ones are left out.

    With m the median and q the 95 % quantile of the logarithm of perplexity, a text is fluent up to
    q and readable up to 2q - m, twice as far above the median. Of degeneracy it is fluent up to the
    95 % quantile, at least 0.1, and readable up to halfway from there to 1.

    Raises:
        SteerlensError: fewer than five texts have both numbers.
    """
    import numpy as np

    logs = [math.log(value) for value in perplexity if value is not None and value > 0]
    repeats = [value for value in degeneracy if value is not None]
    refuse_too_few_unsteered(min(len(logs), len(repeats)))
    median, high = np.quantile(logs, [0.5, AS_UNSTEERED]).tolist()
    repeated = max(float(np.quantile(repeats, AS_UNSTEERED)), LEAST_DEGENERACY)
    return Reading(Limits(high, 2 * high - median), Limits(repeated, (1 + repeated) / 2))


def refuse_too_few_unsteered(n: int) -> None:
    """Refuse `n` unsteered texts with a perplexity if they don't say how texts read."""
    if n < FEWEST:
        raise SteerlensError(
            f"judge=lexical rates fluency against unsteered texts and needs {FEWEST} of them with "
            f"a perplexity; there are {n}."
        )


@dataclass(frozen=True)
class LexicalJudge:
    """Ratings by rules."""

    lexicon: Lexicon
    name: str = "lexical"

    def check(self) -> None:
        """Do nothing: there is nothing that could be missing."""

    def estimate(self, items: Sequence[Item]) -> Estimate:
        """Return two ratings a text, for nothing."""
        return estimate(2 * len(items), 0, [], FREE, 0)

    def rate(
        self,
        items: Sequence[Item],
        progress: Callable[[int], None] = nothing,
        spent_usd: float = 0.0,
    ) -> Rated:
        """Rate concept and fluency.

        Raises:
            SteerlensError: a concept has no vocabulary.
        """
        ratings = []
        for item in items:
            ratings.append({CONCEPT: self._concept(item), FLUENCY: self._fluency(item)})
            progress(2)
        return Rated(self.name, "lexical", ratings)

    def _concept(self, item: Item) -> Rating:
        vocabulary = self.lexicon.vocabularies.get(item.concept)
        if vocabulary is None:
            raise SteerlensError(
                f"judge=lexical has no training texts of the concept {item.concept!r}."
            )
        limits = vocabulary.limits
        if limits is None:
            return Rating(None, UNMEASURED, "no words tell the concept's training texts apart")
        share_of_words = share(item.text, vocabulary)
        value = int(share_of_words >= limits.present) + int(share_of_words >= limits.shaped)
        return Rating(value, detail=f"{share_of_words:.4f} of the words are the concept's")

    def _fluency(self, item: Item) -> Rating:
        if item.perplexity is None or item.degeneracy is None or item.perplexity <= 0:
            return Rating(None, UNMEASURED, "the text has no perplexity")
        reading = self.lexicon.reading
        by_model = reading.log_perplexity.rating(math.log(item.perplexity))
        by_repeats = reading.degeneracy.rating(item.degeneracy)
        detail = f"perplexity {item.perplexity:.1f}, degeneracy {item.degeneracy:.2f}"
        return Rating(min(by_model, by_repeats), detail=detail)


def check(config: JudgeConfig) -> None:
    """Refuse settings that mean nothing to rules."""
    refuse_settings_of_others(config, ("model", "base_url", "key_variable"))


def load(settings: JudgeSettings, lexicon: Lexicon | None = None) -> LexicalJudge:
    """Give the judge of a run.

    Raises:
        SteerlensError: there is no lexicon.
    """
    if lexicon is None:
        raise SteerlensError("judge=lexical needs a concept set: it rates by training texts.")
    return LexicalJudge(lexicon)
