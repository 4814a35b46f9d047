"""Whether a feature steers toward a word, and which does so best, from the tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steerlens.analysis.factors import no_factor
from steerlens.config.schema import ChoiceConfig
from steerlens.results import FEATURES, features_alone, promoted_ids

if TYPE_CHECKING:
    import pandas as pd


def best_toward(steering: pd.DataFrame) -> pd.DataFrame:
    """Sort steered features by the tokens of their concept that they add to a text, most first.

    Controls and features together are left out; of equal ones the higher output score toward the
    concept comes first, and those without a best factor come last.
    """
    alone = features_alone(steering)
    added = alone["concept_success"] - alone["concept_success_unsteered"]
    order = ["added", "concept_score", "layer", "feature"]
    rows = alone.assign(added=added).sort_values(
        order, ascending=[False, False, True, True], na_position="last"
    )
    return rows.drop(columns="added")


def word_row(
    word: str,
    tokens: Mapping[int, str],
    scored: pd.DataFrame,
    steering: pd.DataFrame,
    threshold: float | None,
    top_k: int,
    choice: ChoiceConfig | None = None,
) -> dict[str, Any]:
    """Return the row of `words.parquet` of a word whose candidates were scored and perhaps steered
    with.

    Args:
        word: the concept.
        tokens: those that stand for it, by their ids.
        scored: its candidates, with `layer`, `feature` and `concept_score`.
        steering: the rows of `steering.parquet` of the features that were steered with toward it.
        threshold: the least output score toward it of a feature to steer with; None = any.
        top_k: number of promoted tokens by which candidates were found.
        choice: how factors were chosen.
    """
    row: dict[str, Any] = {"word": word, "candidates": len(scored)}
    row |= {"tokens": [*tokens.values()], "token_ids": [*tokens]}
    if scored.empty:
        why = f"no feature has one of its tokens among the first {top_k} that it promotes"
        return {**row, "reason": why}
    order = ["concept_score", "layer", "feature"]
    nearest = scored.sort_values(order, ascending=[False, True, True]).iloc[0]
    row |= {name: nearest[name] for name in order}
    if threshold is not None and row["concept_score"] < threshold:
        score = f"the highest output score toward it is {row['concept_score']:.2g}"
        return {**row, "reason": f"{score}, and below {threshold:g} a feature hardly steers"}
    best = best_toward(steering).to_dict("records")
    if not best or not isinstance(best[0]["best_factor"], float):
        return {**row, "reason": no_factor(choice)}
    names = ("best_factor", "concept_success", "concept_success_unsteered", "texts")
    row |= {name: best[0][name] for name in (*order, *names)}
    if not row["concept_success"] > row["concept_success_unsteered"]:
        why = "the steered texts have no more of its tokens than the unsteered ones"
        return {**row, "reason": why}
    return row


def words_summary(words: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the words that a run has tried, as `summary.json` says it: each with whether it was
    found.
    """
    rows = [
        {str(name): _plain(value) for name, value in row.items()}
        for row in words.to_dict("records")
    ]
    return [{**row, "found": row["reason"] is None} for row in rows]


def _plain(value: Any) -> Any:
    """Return a table's value as JSON has it; a null, which may be pandas' NA, is None."""
    if isinstance(value, str | int | float):
        return value
    return list(value) if hasattr(value, "__len__") else None


def words_explanation(words: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say, in sentences, which words features steer toward, and why others have none."""
    if not words:
        return []
    lines = []
    if len(words) > 1:
        names = [str(row["word"]) for row in words if row["found"]]
        lines.append(
            f"Of the {len(words):,} words tried {len(names):,} have a feature that steers toward "
            f"them{': ' if names else ''}{', '.join(names)}."
        )
    return [
        *lines,
        *(
            f"Nothing here steers toward {row['word']!r}: {row['reason']}."
            for row in words
            if not row["found"]
        ),
    ]


def lens_candidates(
    features: pd.DataFrame, tokens: Mapping[str, Sequence[int]], top_k: int
) -> pd.DataFrame:
    """Return the features that may stand for each word: `word`, and the keys of the table of
    features.

    A feature is a candidate where a token of the word is among the first `top_k` that it promotes
    by the run's lens.

    Args:
        features: rows of `features.parquet`, with their tokens.
        tokens: ids of the tokens that stand for each word.
        top_k: number of promoted tokens that are looked at.
    """
    import pandas as pd

    promoted = promoted_ids(features)

    words_of: dict[int, list[str]] = {}
    for word, ids in tokens.items():
        for id_ in ids:
            words_of.setdefault(id_, []).append(word)
    rows = [
        {"word": word, **dict(zip(FEATURES.keys, key, strict=True))}
        for key, ids in zip(
            features[[*FEATURES.keys]].itertuples(index=False, name=None), promoted, strict=True
        )
        for word in dict.fromkeys(w for id_ in ids[:top_k] for w in words_of.get(id_, ()))
    ]
    return pd.DataFrame(rows, columns=["word", *FEATURES.keys])
