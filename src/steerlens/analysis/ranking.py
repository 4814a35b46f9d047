"""Which features of a run come first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steerlens.results import FEATURES, SCORES
from steerlens.scores.concepts.inflection import STOP_WORDS

if TYPE_CHECKING:
    import pandas as pd

RANKINGS = tuple(name for name, score in SCORES.items() if score.ranks)
"""Columns by which features can be ranked, the best guide to steering first."""


def ranking(frame: pd.DataFrame) -> str | None:
    """Return the column that ranks the features of this table, or None if nothing was scored.

    The first of `RANKINGS` that has numbers, else the first column of another method that has.
    """
    extra = [name for name in frame.columns if name not in FEATURES.columns]
    for name in (*RANKINGS, *extra):
        if getattr(frame[name].dtype, "kind", "") in "iuf" and any(frame[name].notna().tolist()):
            return str(name)
    return None


def title_of(ranked_by: str) -> str:
    """Return what a table of the best features is called."""
    titles = {"output_score": "Best output features", "input_score": "Best input features"}
    return titles.get(ranked_by, f"Best features by {ranked_by}")


TIE_DECIMALS = 2
"""Output scores that are equal to so many decimals are equally good."""

SHORTEST_WORD = 3
"""Letters that a token must have to look like a word."""


def best_features(frame: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the `n` best features by `ranking`; ties in the order of layer and feature.

    By output score dozens share the highest one, function words and punctuation before all. Of
    equal ones (`TIE_DECIMALS`) those come first whose token looks like a word and is no other's
    before, and of these those to whose score steering adds most (`output_score_delta`).
    """
    by = ranking(frame)
    if by is None:
        return frame.head(0)
    scored = frame.loc[frame[by].notna()]
    if by != "output_score":
        return scored.sort_values([by, "layer", "feature"], ascending=[False, True, True]).head(n)
    order = ["tied", "output_score_delta", by, "layer", "feature"]
    ascending = [False, False, False, True, True]
    rows = scored.assign(tied=scored[by].round(TIE_DECIMALS)).sort_values(
        order, ascending=ascending
    )
    words: set[str | None] = {None}
    is_new = []
    for word in _as_words(rows["output_token"].tolist()):
        is_new.append(word not in words)
        words.add(word)
    rows = rows.assign(is_new=is_new)
    rows = rows.sort_values(["tied", "is_new"], ascending=[False, False], kind="stable")
    return rows.drop(columns=["tied", "is_new"]).head(n)


BEST_OF_LAYER = 200
"""Features of each layer, by each score, that have a full card in `report.html`."""


def best_of_layers(frame: pd.DataFrame, n: int) -> list[int]:
    """Give the positions of the `n` best rows of each layer by score toward the concept, by S_out
    and by S_in, each once.
    """
    rows = frame.reset_index(drop=True)
    positions: list[int] = []
    for name in ("concept_score", "output_score", "input_score"):
        scored = rows.loc[rows[name].notna()]
        best = scored.sort_values(["layer", name], ascending=[True, False], kind="stable")
        positions += best.groupby("layer").head(n).index.tolist()
    return list(dict.fromkeys(positions))


def _as_words(tokens: Sequence[Any]) -> list[str | None]:
    """Return the word that each token is, in lower case; None for pieces, punctuation, function
    words.

    Where some tokens begin with a space, those without are pieces of words.
    """
    texts = [token if isinstance(token, str) else "" for token in tokens]
    start = " " if any(text.startswith(" ") for text in texts) else ""
    words = [text.strip().lower() if text.startswith(start) else "" for text in texts]
    return [
        word if word.isalpha() and len(word) >= SHORTEST_WORD and word not in STOP_WORDS else None
        for word in words
    ]


def top_score(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Return the highest output score to `TIE_DECIMALS` and the number of features that share it.

    None where features aren't ranked by their output score.
    """
    if ranking(frame) != "output_score":
        return None
    rounded = frame["output_score"].dropna().to_numpy(dtype=float).round(TIE_DECIMALS)
    return {"score": float(rounded.max()), "features": int((rounded == rounded.max()).sum())}
