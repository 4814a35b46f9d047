"""What answers under an edit are worth beside the unsteered ones, item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steerlens.analysis.resampling import mean_estimate


class Changed(NamedTuple):
    """How many of some answers aren't the unsteered ones."""

    changed: int
    worse: int
    """Of these, how many count for less than the unsteered ones."""

    @property
    def side_effect_ratio(self) -> float | None:
        """Give the share of the changed answers that got worse; None where none has changed."""
        return self.worse / self.changed if self.changed else None


def changed_answers(
    answers: Sequence[Any],
    scores: Sequence[float],
    unsteered_answers: Sequence[Any],
    unsteered_scores: Sequence[float],
) -> Changed:
    """Count answers that steering has changed, and that it has made worse (CorrSteer, arXiv
    2508.12535), of the same items in the same order.
    """
    pairs = zip(answers, unsteered_answers, scores, unsteered_scores, strict=True)
    differences = [after - before for new, old, after, before in pairs if new != old]
    return Changed(len(differences), sum(difference < 0 for difference in differences))


def compared_answers(
    answers: Mapping[str, Sequence[Any]], unsteered: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return the columns of `capability.parquet` that follow from a task's answers.

    Args:
        answers: `item_scores`, from 0 to 1 each, and `answers`, of every item under an edit.
        unsteered: the same without it.
    """
    scores, before = answers["item_scores"], unsteered["item_scores"]
    counts = changed_answers(answers["answers"], scores, unsteered["answers"], before)
    estimate = mean_estimate(np.asarray(scores, dtype=float))
    value, low, high = estimate or (None, None, None)
    return {
        "items": len(scores),
        "accuracy": value,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_unsteered": float(np.mean(before)),
        "changed": counts.changed,
        "worse": counts.worse,
        "side_effect_ratio": counts.side_effect_ratio,
        "item_scores": [*scores],
        "answers": [*answers["answers"]],
    }
