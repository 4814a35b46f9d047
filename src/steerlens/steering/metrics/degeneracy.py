"""Degeneracy: how much a continuation repeats itself.

All numbers are of the generated token ids, without the special token that closes them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerlens.errors import SteerlensError
from steerlens.steering.metrics.texts import MetricRun, Texts, without_closing

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

USES_EVALUATOR = False


@dataclass
class DegeneracyConfig:
    """Settings of how far a text repeats itself."""

    max_period: int = 4
    """Longest period, in tokens, that counts as repetition."""

    def check(self) -> None:
        """Refuse a period that none can be."""
        if self.max_period < 1:
            raise SteerlensError(f"metrics.degeneracy.max_period={self.max_period} must be >= 1.")


Config = DegeneracyConfig


def measure(
    texts: Texts, subject: Subject, config: DegeneracyConfig, run: MetricRun
) -> Mapping[str, Sequence[float]]:
    """Return columns `distinct_1`, `distinct_2`, `repetition` and `degeneracy`."""
    special = set(subject.lm.tokenizer.all_special_ids)
    bodies = [without_closing(ids, special) for ids in texts.token_ids]
    run.progress(len(texts))
    return {
        "distinct_1": [distinct(ids, 1) for ids in bodies],
        "distinct_2": [distinct(ids, 2) for ids in bodies],
        "repetition": [repetition(ids, config.max_period) for ids in bodies],
        "degeneracy": [degeneracy(ids) for ids in bodies],
    }


def distinct(ids: Sequence[Hashable], n: int) -> float:
    """Return distinct n-grams / n-grams (Li et al. 2016); 1 where there is no n-gram."""
    n_grams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    return len(set(n_grams)) / len(n_grams) if n_grams else 1.0


def degeneracy(ids: Sequence[Hashable]) -> float:
    """Return 1 - the diversity of Su et al.

    2022, the product of distinct 2-, 3- and 4-grams' shares.

    0 where nothing repeats, as in a text of fewer than 3 tokens; near 1 for one phrase over and
    over.
    """
    return 1.0 - math.prod(distinct(ids, n) for n in (2, 3, 4))


def repetition(ids: Sequence[Hashable], max_period: int) -> float:
    """Return the share of the tokens that is in the longest stretch with a period of 1 to
    `max_period`.

    A stretch has period p if each of its tokens but the first p is the one p before; it counts from
    two full periods (2p tokens) on. 0 where there is none, as in an empty text; 1 for one token
    over and over.
    """
    longest = 0
    for period in range(1, max_period + 1):
        same = 0
        for token, token_before in zip(ids, ids[period:], strict=False):
            same = same + 1 if token == token_before else 0
            if same >= period:
                longest = max(longest, same + period)
    return longest / len(ids) if longest else 0.0
