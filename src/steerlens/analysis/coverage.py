"""For how many words there is a feature that steers toward them, from the tables alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from steerlens.analysis.factors import choose_factors
from steerlens.config.schema import ChoiceConfig
from steerlens.scores.concepts import names

COVERED = 0.5
"""A word is covered by a feature whose steered texts show it at least so often."""


def shows(text: str, word: str, glued_to: str = "") -> bool:
    """Return whether `word` stands in `text` as a whole word, in any of its forms; a phrase, if all
    its words but stop words do.

    Letters at the beginning of the text that go on with the last word of `glued_to`, what stands
    right before, are no word of their own.
    """
    if re.search(r"\w$", glued_to):
        text = re.sub(r"^\w+", "", text)
    return names(text, (word,))


def words_shown(
    texts: pd.DataFrame, features: Mapping[str, int], perplexity_budget: float, glued: bool = True
) -> pd.DataFrame:
    """Return how often the texts of a word's feature show the word, at the factor where most do.

    The factor is chosen on every second prompt, among those whose mean perplexity is within the
    budget; the shares and means are those of the other prompts.

    Args:
        texts: rows of `generations.parquet` of one layer, factor 0 included.
        features: by word.
        perplexity_budget: mean perplexity allowed, times that of the feature's factor-0 texts.
        glued: whether a text goes on right where its prompt ends, as without a chat template.

    Returns:
        One row per word, in their order: `word`, `feature`, `best_factor`, `word_share`,
        `perplexity`, the last two also `_unsteered`, and `texts`; null but the first two where no
        factor is within the budget.
    """
    rows = [
        of_word.assign(
            concept=word,
            concept_success=[
                float(shows(text, word, prompt if glued else ""))
                for text, prompt in zip(of_word["text"], of_word["prompt"], strict=True)
            ],
        )
        for word, feature in features.items()
        for of_word in [texts.loc[texts["feature"] == feature]]
    ]
    if not rows:
        return pd.DataFrame(columns=["word"])
    choice = ChoiceConfig(
        rule="budget", perplexity_budget=perplexity_budget, split=True, success="concept_success"
    )
    chosen = choose_factors(pd.concat(rows, ignore_index=True), choice)
    columns = {
        "concept": "word",
        "feature": "feature",
        "best_factor": "best_factor",
        "concept_success": "word_share",
        "concept_success_unsteered": "word_share_unsteered",
        "perplexity": "perplexity",
        "perplexity_unsteered": "perplexity_unsteered",
        "texts": "texts",
    }
    at_best = chosen.loc[:, [*columns]].rename(columns=columns)
    without = at_best["best_factor"].isna()
    at_best.loc[without, ["word_share_unsteered", "perplexity_unsteered"]] = None
    return at_best.set_index("word").loc[[*features]].reset_index()


def by_word(coverage: pd.DataFrame) -> pd.DataFrame:
    """Return of every word, in their order, the row of the layer that shows it most often.

    Of equal ones that with the highest score, then the lowest layer.
    """
    best = coverage.sort_values(
        ["word_share", "concept_score", "layer"], ascending=[False, False, True], na_position="last"
    ).drop_duplicates("word")
    return best.set_index("word").loc[coverage["word"].drop_duplicates()].reset_index()


def covered(coverage: pd.DataFrame) -> np.ndarray:
    """Return, for every word, whether a feature of any layer covers it."""
    return by_word(coverage)["word_share"].fillna(0).to_numpy(dtype=float) >= COVERED


def coverage_summary(coverage: pd.DataFrame) -> dict[str, Any] | None:
    """Return how many words there are, have a token and are covered, over all layers and by layer.

    None where no words were asked for.
    """
    if coverage.empty:
        return None
    layers = [
        {"layer": int(str(layer)), "covered": int(covered(rows).sum())}
        for layer, rows in coverage.groupby("layer", sort=True)
    ]
    most = max(layer["covered"] for layer in layers)
    best = [layer["layer"] for layer in layers if layer["covered"] == most]
    return {
        "words": coverage["word"].nunique(),
        "formed": coverage.loc[coverage["tokens"].notna(), "word"].nunique(),
        "covered": int(covered(coverage).sum()),
        "covered_from": COVERED,
        "layers": layers,
        "best_layer": best[0] if most and len(best) == 1 else None,
    }


def coverage_explanation(coverage: Mapping[str, Any] | None) -> list[str]:
    """Return what the section says, in a sentence."""
    if coverage is None:
        return []
    n = coverage["words"]
    most = max(layer["covered"] for layer in coverage["layers"])
    best = coverage["best_layer"]
    where = "" if best is None else f"; most in layer {best}: {most:,}"
    return [
        f"Of {n:,} word{'s' * (n != 1)} {coverage['formed']:,} can be formed by tokens, "
        f"and {coverage['covered']:,} can be steered toward (in at least "
        f"{coverage['covered_from']:.0%} of the steered texts of a feature the word stands{where})."
    ]
