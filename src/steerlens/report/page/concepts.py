"""The page's part on concepts: candidates, why each was chosen or not, and the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerlens.analysis.factors import no_factor
from steerlens.analysis.toward import words_explanation, words_summary
from steerlens.analysis.toward_texts import Toward, steered_toward
from steerlens.config.schema import ChoiceConfig
from steerlens.report.page.contents import Candidate, Concept, plain
from steerlens.results.folder import RunTables
from steerlens.results.text import counted, visible, visible_token

CANDIDATES = 50
"""Candidates that are listed of a concept."""

TOKENS = 20


def concept_results(tables: RunTables, is_alone: bool) -> list[Concept]:
    """Give the concepts that the run looked for.

    Args:
        tables: of the run.
        is_alone: whether the run was asked for one concept, so that all its features with a score
            toward it are candidates.
    """
    return [_concept(tables, word, is_alone) for word in words_summary(tables.words)]


def _concept(tables: RunTables, word: Mapping[str, Any], is_alone: bool) -> Concept:
    features = steered_toward(tables, word)
    candidates = [
        _steered(feature, at == 0 and word["found"], tables.choice)
        for at, feature in enumerate(features)
    ]
    if is_alone:
        steered = {(feature.row["layer"], feature.row["feature"]) for feature in features}
        candidates += _unsteered_candidates(tables, steered, CANDIDATES - len(candidates))
    adding = sum(feature.adds for feature in features)
    return Concept(
        concept=visible(str(word["word"])),
        tokens=[visible_token(token) for token in (word["tokens"] or [])[:TOKENS]],
        is_found=bool(word["found"]),
        sentence=visible(
            f"{adding} of {counted(len(features), 'steered feature')} "
            f"write{'s' * (adding == 1)} more of its tokens than the unsteered model."
            if word["found"]
            else "".join(words_explanation([word]))
        ),
        candidates=candidates,
    )


def _steered(feature: Toward, is_best: bool, choice: ChoiceConfig | None) -> Candidate:
    row = feature.row
    if is_best:
        why = "chosen: it writes most tokens of the concept"
    elif not feature.pairs:
        why = no_factor(choice)
    elif feature.adds:
        why = "steers, less than the chosen one"
    else:
        why = "its texts have no more tokens of the concept than the unsteered ones"
    return Candidate(
        layer=row["layer"],
        feature=row["feature"],
        tokens=[visible_token(token) for token in feature.writes[:8]],
        toward=plain(row["concept_score"]),
        output_score=plain(row["output_score"]),
        best_factor=plain(row["best_factor"]),
        success=plain(row["concept_success"]),
        unsteered=plain(row["concept_success_unsteered"]),
        perplexity=plain(row["perplexity"]),
        why=why,
        is_best=is_best,
    )


def _unsteered_candidates(
    tables: RunTables, steered: set[tuple[int, int]], n: int
) -> list[Candidate]:
    """Candidates that weren't steered with, by their score toward the concept."""
    frame = tables.features.loc[tables.features["concept_score"].notna()]
    rows = frame.sort_values("concept_score", ascending=False, kind="stable").to_dict("records")
    not_steered = [row for row in rows if (row["layer"], row["feature"]) not in steered]
    return [
        Candidate(
            layer=row["layer"],
            feature=row["feature"],
            tokens=[visible_token(token) for token in list(row["logit_lens_tokens"])[:8]],
            toward=plain(row["concept_score"]),
            output_score=plain(row["output_score"]),
            best_factor=None,
            success=None,
            unsteered=None,
            perplexity=None,
            why="not steered with: its score toward the concept is lower, or below the threshold",
            is_best=False,
        )
        for row in not_steered[: max(n, 0)]
    ]
