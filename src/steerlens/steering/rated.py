"""Texts of features, rated by a language model in how far they are about what is steered toward."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steerlens.analysis.factors import FEATURE, RATING
from steerlens.analysis.rated_arms import changed_texts
from steerlens.analysis.ratings import harmonic
from steerlens.judges.items import ASPECTS, Item

if TYPE_CHECKING:
    from steerlens.engine.run_context import RunContext
    from steerlens.judges.session import RatingSession


def with_ratings(
    texts: pd.DataFrame,
    concept: str,
    are_answers: bool,
    session: RatingSession,
    ctx: RunContext,
    where: str,
) -> pd.DataFrame:
    """Return texts with a judge's columns: each aspect's rating, why one is missing, who rated, and
    `rating`, the harmonic mean of a text's aspects, null where one is missing.

    Args:
        texts: with `prompt` and `text`.
        concept: what they are steered toward.
        are_answers: whether prompts are requests that the texts answer; else they belong to them,
            and no instruction is rated.
        session: the run's judge, a language model.
        ctx: shows the progress.
        where: begins the lines that the user sees.

    Raises:
        SteerlensError: nothing can be asked any more.
    """
    items = [
        Item(text if are_answers else prompt + text, concept, prompt if are_answers else None)
        for prompt, text in zip(texts["prompt"], texts["text"], strict=True)
    ]
    assert session.judge is not None
    rated = session.rate(session.judge, items, ctx, where)
    columns = rated.columns()
    names = [f"{rated.kind}_{aspect}" for aspect in ASPECTS]
    values_AN = np.array([columns[name] for name in names if name in columns], dtype=float)
    by_name: dict[str, Any] = {name: pd.array(values) for name, values in columns.items()}
    by_name |= {"judge": rated.judge, RATING: harmonic(values_AN.T)}
    return texts.assign(**by_name)


def side_effects(texts: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """Return the columns `changed`, `worse` and `side_effect_ratio` of rated features' texts at
    their best factors, beside the unsteered ones of the same prompts and samples.

    Args:
        texts: rated ones, at all factors.
        best: a row for each feature and control, with its `best_factor`.
    """
    at_best = texts.merge(best[[*FEATURE, "best_factor"]], how="left", on=list(FEATURE))
    is_best = (at_best["factor"] == 0) | (at_best["factor"] == at_best["best_factor"])
    at_best = at_best.loc[is_best.fillna(False).astype(bool)]
    changed = changed_texts(at_best, FEATURE, [*FEATURE, "prompt", "sample"])
    columns = ["changed", "worse", "side_effect_ratio"]
    features: Any = best[[*FEATURE]]
    return features.merge(changed, how="left", on=list(FEATURE))[columns]


def missing_ratings(texts: pd.DataFrame) -> str | None:
    """Say how many texts have no rating, and why; None if all have one."""
    missing = texts.loc[texts[RATING].isna()]
    if missing.empty:
        return None
    reasons = missing[[name for name in texts if name.endswith("_missing")]].bfill(axis=1)
    counts = Counter(reasons.iloc[:, 0].tolist())
    why = ", ".join(f"{reason}: {n:,}" for reason, n in counts.most_common())
    return (
        f"{len(missing):,} of {len(texts):,} texts have no rating ({why}): factors are chosen on "
        "the others."
    )
