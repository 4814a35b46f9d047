"""Rules that choose the steering factor: one function each, by its name in `choice.rule`.

A rule is given, of one feature at one factor, the mean success and the mean perplexity of its texts
(NaN where there is none; `blind` where no factor has any), the mean perplexity of its texts without
steering, and the settings `choice`. It returns the factor's merit, of which the best has most, or
None where the factor may not be chosen. A rule that has `kl`, `relative_dose` or `rating` among its
parameters is given these means, too, by name.
"""

from __future__ import annotations

import math

from steerlens.config.schema import ChoiceConfig


def paper(
    success: float, perplexity: float, blind: bool, unsteered: float, choice: ChoiceConfig
) -> float | None:
    """Return most success per perplexity, below a cap of success (Section 4.1)."""
    if not success <= choice.success_cap:
        return None
    return success if blind else 0.0 if math.isnan(perplexity) else success / perplexity


def budget(
    success: float, perplexity: float, blind: bool, unsteered: float, choice: ChoiceConfig
) -> float | None:
    """Return most success within a budget of perplexity."""
    return success if blind or perplexity <= choice.perplexity_budget * unsteered else None


def perplexity_ratio(
    success: float, perplexity: float, blind: bool, unsteered: float, choice: ChoiceConfig
) -> float | None:
    """Return most success where perplexity has grown at most so many times (steerkit's 1.5)."""
    return success if blind or perplexity <= choice.perplexity_ratio * unsteered else None


def kl(
    success: float,
    perplexity: float,
    blind: bool,
    unsteered: float,
    choice: ChoiceConfig,
    *,
    kl: float,
) -> float | None:
    """Return most success within a budget of KL divergence from the unsteered model."""
    return success if kl <= choice.kl_budget else None


def dose(
    success: float,
    perplexity: float,
    blind: bool,
    unsteered: float,
    choice: ChoiceConfig,
    *,
    relative_dose: float,
) -> float | None:
    """Return most success within a budget of relative dose."""
    return success if relative_dose <= choice.dose_budget else None


def judge(
    success: float,
    perplexity: float,
    blind: bool,
    unsteered: float,
    choice: ChoiceConfig,
    *,
    rating: float,
) -> float | None:
    """Return the judge's mean rating, each text's the harmonic mean of its aspects (AxBench)."""
    return None if math.isnan(rating) else rating
