"""What the report says of words that features were steered toward, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.analysis.toward import words_summary
from steerlens.analysis.toward_texts import Toward, steered_toward
from steerlens.report.concept_page import template_sentence
from steerlens.report.steering import marked
from steerlens.results.folder import RunTables
from steerlens.results.text import (
    markdown,
    markdown_table,
    number,
    safe_range,
    visible,
    visible_token,
    visible_tokens,
)

TEXTS = 10
"""Pairs of texts that are shown of a feature."""
TOKENS = 12
CANDIDATES = 20

NUMBERS = {
    "score toward it": ("concept_score", ".3f"),
    "S_out": ("output_score", ".3f"),
    "S_in": ("input_score", ".2f"),
    "best factor": ("best_factor", "g"),
    "its tokens a text": ("concept_success", ".2g"),
    "unsteered": ("concept_success_unsteered", ".2g"),
    "perplexity": ("perplexity", ".3g"),
    "unsteered perplexity": ("perplexity_unsteered", ".3g"),
}


def toward_sections(tables: RunTables) -> list[str]:
    """Return the parts about the words: what was found, and of each word its features and their
    texts.
    """
    words = words_summary(tables.words)
    parts = [_words_table(words)] if len(words) > 1 else []
    for word in words:
        features = steered_toward(tables, word)
        parts += _word_parts(word, features, tables) if features else []
    return [part for part in parts if part]


def _words_table(words: Sequence[Mapping[str, Any]]) -> str:
    header = ["word", "tokens", "candidates", "layer", "feature", "score toward it"]
    header += ["best factor", "its tokens a text", "unsteered", "why not"]
    formats = ("d", "d", "d", ".3f", "g", ".2g", ".2g")
    names = ("candidates", "layer", "feature", "concept_score", "best_factor", "concept_success")
    return markdown_table(
        header,
        [
            [
                _plain(word["word"]),
                markdown(visible_tokens(word["tokens"], 3)),
                *(
                    number(word[name], spec)
                    for name, spec in zip(
                        (*names, "concept_success_unsteered"), formats, strict=True
                    )
                ),
                _plain(word["reason"] or ""),
            ]
            for word in words
        ],
    )


def _word_parts(
    word: Mapping[str, Any], features: Sequence[Toward], tables: RunTables
) -> list[str]:
    by_concept = tables.choice is not None and tables.choice.success == "concept_success"
    chosen_by = "tokens of the concept" if by_concept else "success tokens"
    parts = [
        f"## Toward {_plain(word['word'])}",
        f"Tokens that stand for it: {markdown(visible_tokens(word['tokens'], TOKENS))}. "
        f"{template_sentence(tables)} The factor of each feature is the one that its texts' "
        f"{chosen_by} choose; tokens of the concept are bold.",
        _features_table(features),
    ]
    parts += _together(tables, word)
    for feature in features:
        if feature.pairs:
            parts += [
                f"### Layer {feature.row['layer']}, feature {feature.row['feature']}",
                _texts(feature),
            ]
    return parts


def _together(tables: RunTables, word: Mapping[str, Any]) -> list[str]:
    """Return a table of the features that were steered with together; [] if none were."""
    of_word = (tables.steering["concept"] == word["word"]).fillna(value=False)
    several = tables.steering["together"].notna()
    rows = tables.steering.loc[of_word & several].to_dict("records")
    if not rows:
        return []
    names = ("best factor", "its tokens a text", "unsteered", "perplexity", "unsteered perplexity")
    cells = [
        [
            str(row["layer"]),
            f"{row['feature']}+{row['together']}".replace("+", " + "),
            *(number(row[column], spec) for column, spec in map(NUMBERS.__getitem__, names)),
        ]
        for row in rows
    ]
    return [markdown_table(["layer", "features together", *names], cells)]


def _features_table(features: Sequence[Toward]) -> str:
    header = ["layer", "feature", "writes", *NUMBERS, "texts with it", "unsteered texts with it"]
    header.append("factors allowed")
    return markdown_table(
        header,
        [
            [
                *(str(feature.row[name]) for name in ("layer", "feature")),
                markdown(" ".join(visible_token(token) for token in feature.writes[:TOKENS])),
                *(number(feature.row[name], spec) for name, spec in NUMBERS.values()),
                f"{feature.n_with_token} of {feature.n_texts}",
                str(feature.n_with_token_unsteered),
                safe_range(feature.row),
            ]
            for feature in features
        ],
    )


def _texts(feature: Toward) -> str:
    rows = [
        [_plain(pair.prompt), marked(pair.unsteered), marked(pair.steered)]
        for pair in feature.pairs[:TEXTS]
    ]
    factor = number(feature.row["best_factor"], "g")
    return markdown_table(["prompt", "unsteered", f"steered, factor {factor}"], rows)


def candidates_section(tables: RunTables) -> list[str]:
    """Return the candidates of a concept with the highest output scores toward it; [] without
    any.
    """
    if tables.features.empty:
        return []
    order = ["concept_score", "layer", "feature"]
    best = tables.features.sort_values(order, ascending=[False, True, True]).head(CANDIDATES)
    header = ["layer", "feature", "score toward it", "its token", "S_out", "S_in", "logit lens"]
    rows = [
        [
            str(row["layer"]),
            str(row["feature"]),
            number(row["concept_score"], ".4f"),
            markdown(visible_token(row["concept_token"])),
            number(row["output_score"], ".4f"),
            number(row["input_score"], ".2f"),
            markdown(visible_tokens(row["logit_lens_tokens"], 8)),
        ]
        for row in best.to_dict("records")
    ]
    n = len(tables.features)
    count = f"{n:,} candidate{'s' * (n != 1)}"
    return [f"## {count}", markdown_table(header, rows)]


def _plain(text: str) -> str:
    return markdown(visible(str(text)))
