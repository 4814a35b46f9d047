"""What the report says of the words that the SAEs can be steered toward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlens.analysis.coverage import by_word, coverage_explanation, coverage_summary
from steerlens.results.text import markdown, markdown_table, number, visible, visible_tokens

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = {
    "layer": ("layer", "d"),
    "feature": ("feature", "d"),
    "score": ("concept_score", ".4f"),
    "best factor": ("best_factor", "g"),
    "shown": ("word_share", ".0%"),
    "unsteered": ("word_share_unsteered", ".0%"),
    "perplexity": ("perplexity", ".4g"),
    "unsteered perplexity": ("perplexity_unsteered", ".4g"),
}


def words_section(coverage: pd.DataFrame) -> list[str]:
    """Return every word in its best layer, those that are shown most first; [] if there are no
    words.
    """
    if coverage.empty:
        return []
    best = by_word(coverage).sort_values(["word_share", "concept_score"], ascending=False)
    rows = [
        [
            markdown(visible(row["word"])),
            markdown(visible_tokens(row["tokens"], 3)),
            *(number(row[column], spec) for column, spec in NUMBERS.values()),
            markdown(visible(row["reason"])) if isinstance(row["reason"], str) else "",
        ]
        for row in best.to_dict("records")
    ]
    return [
        "## Words",
        " ".join(coverage_explanation(coverage_summary(coverage))),
        markdown_table(["word", "tokens", *NUMBERS, "why not"], rows),
    ]
