"""For every word of a list, the feature of one subject that steers toward it, and how well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from steerlens.analysis.coverage import words_shown
from steerlens.config.registry import ScoreConfig
from steerlens.config.schema import CoverageConfig
from steerlens.config.settings import SteeringSettings
from steerlens.errors import SteerlensError
from steerlens.scores import output
from steerlens.scores.concepts import ConceptTokens, Vocabulary, candidates
from steerlens.steering.features import steer_layer

if TYPE_CHECKING:
    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import LoadedModel, Subject

DECIMALS = 6
"""Output scores that differ by less are equal: rounding depends on the batch."""


class Best(NamedTuple):
    """The feature with the highest output score toward a word; null where there is no candidate."""

    candidates: int
    """Features that have one of the word's tokens among those they promote."""
    feature: int | None = None
    concept_score: float | None = None


def tokens_or_reason(tokenizer: Any, words: Sequence[str]) -> dict[str, ConceptTokens | str]:
    """Return, for every word the tokens that stand for it, or why there is none."""
    vocabulary = Vocabulary(tokenizer)
    by_word: dict[str, ConceptTokens | str] = {}
    for word in words:
        try:
            by_word[word] = vocabulary.tokens(word)
        except SteerlensError as error:
            by_word[word] = str(error)
    return by_word


def word_tokens(tokenizer: Any, words: Sequence[str]) -> dict[str, ConceptTokens | str]:
    """Return, for every word the tokens that stand for it, or why there is none.

    Raises:
        SteerlensError: no word has any.
    """
    by_word = tokens_or_reason(tokenizer, words)
    reasons = [why for why in by_word.values() if isinstance(why, str)]
    if len(reasons) == len(words):
        raise SteerlensError(
            f"none of the {len(words)} coverage.words can be formed; of the first: {reasons[0]}"
        )
    return by_word


def cover_layer(
    subject: Subject,
    words: Mapping[str, ConceptTokens | str],
    coverage: CoverageConfig,
    score: output.PromptConfig,
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None = None,
) -> list[dict[str, Any]]:
    """Return rows of `coverage.parquet`, one for every word.

    Args:
        subject: model and SAE.
        words: from `word_tokens`.
        coverage: which features are candidates, and which of them are steered with.
        score: prompt and factor of the output score toward a word, from `prompt_settings`.
        settings: factors, edit and prompts.
        ctx: memory, seed, progress, and where finished texts are kept.
        evaluator: the model whose perplexity is measured; None = the subject's own, unsteered.
    """
    threshold = coverage.threshold
    formed = {word: tokens for word, tokens in words.items() if isinstance(tokens, ConceptTokens)}
    best = best_features(subject, formed, coverage.top_k, score, ctx)
    features = {
        word: best_of_word.feature
        for word, best_of_word in best.items()
        if best_of_word.feature is not None and (best_of_word.concept_score or 0) >= threshold
    }
    steered = _steered(subject, features, settings, ctx, evaluator)
    rows = []
    for word, tokens in words.items():
        row = {
            "model": subject.lm.name,
            "sae": subject.name,
            "hook_name": subject.hook_name,
            "layer": subject.layer,
            "word": word,
        }
        if isinstance(tokens, str):
            rows.append({**row, "reason": tokens})
            continue
        row |= {"tokens": list(tokens.texts.values()), **best[word]._asdict()}
        row |= steered.get(word, {})
        reason = _reason(row, word in features, coverage, settings.choice.perplexity_budget)
        rows.append({**row, "reason": reason})
    return rows


def _reason(
    row: Mapping[str, Any], is_steered: bool, coverage: CoverageConfig, budget: float
) -> str | None:
    """Return why a column of `row` is null, where one is."""
    if row["feature"] is None:
        return f"no feature has a token of it among the first {coverage.top_k} that it promotes"
    if not is_steered:
        return f"no feature has an output score of {coverage.threshold:g} toward it"
    if row["best_factor"] is None:
        return f"no factor keeps the perplexity within {budget:g} times that without steering"
    return None


def best_features(
    subject: Subject,
    words: Mapping[str, ConceptTokens],
    top_k: int,
    score: output.PromptConfig,
    ctx: RunContext,
) -> dict[str, Best]:
    """Find for every word the candidate with the highest output score toward the word's tokens.

    Of equal ones it is the lowest id; all words and candidates are scored together.

    Args:
        subject: model and SAE.
        words: each with its tokens.
        top_k: of the tokens that a feature promotes, how many are compared with the word's.
        score: prompt and factor of the output score.
        ctx: memory and progress.
    """
    pairs = [
        (word, candidate.feature)
        for word, tokens in words.items()
        for candidate in candidates(subject, tokens, ctx, top_k)
    ]
    scored: dict[str, list[tuple[int, float]]] = {word: [] for word in words}
    scores = scores_toward(subject, pairs, words, score, ctx)["output_score"]
    for (word, feature), number in zip(pairs, scores, strict=True):
        scored[word].append((feature, float(number)))
    return {
        word: Best(
            len(of_word),
            *max(
                of_word,
                key=lambda scored_feature: (round(scored_feature[1], DECIMALS), -scored_feature[0]),
            ),
        )
        if of_word
        else Best(0)
        for word, of_word in scored.items()
    }


def prompt_settings(scores: Iterable[ScoreConfig]) -> output.PromptConfig:
    """Give the settings of the first of a run's scores that steers one prompt, else the
    defaults: features are scored toward words with the same prompt and factor.
    """
    of_prompts = (score for score in scores if isinstance(score, output.PromptConfig))
    return next(of_prompts, output.OutputScoreConfig())


def scores_toward(
    subject: Subject,
    pairs: Sequence[tuple[str, int]],
    words: Mapping[str, ConceptTokens],
    score: output.PromptConfig,
    ctx: RunContext,
) -> Mapping[str, Any]:
    """Score each pair's feature toward the tokens of its word, all pairs together.

    Args:
        subject: model and SAE.
        pairs: words and features.
        words: each with its tokens.
        score: prompt and factor of the output score.
        ctx: memory and progress.

    Returns:
        The columns of `output.score_toward`, one entry per pair.
    """
    if not pairs:
        return {"output_score": [], "output_token": []}
    # Words with fewer tokens than others repeat them, which changes no score.
    widest = max(len(words[word].texts) for word, _ in pairs)
    tokens_BK = [list(islice(cycle(words[word].texts), widest)) for word, _ in pairs]
    ids_B = torch.tensor([feature for _, feature in pairs])
    with ctx.task(len(pairs), f"layer {subject.layer}: words", "pairs") as advance:
        return output.score_toward(
            subject, ids_B, torch.tensor(tokens_BK), score, replace(ctx, progress=advance)
        )


def _steered(
    subject: Subject,
    features: Mapping[str, int],
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None,
) -> dict[str, dict[str, Any]]:
    """Return what the texts of each word's feature show, by word; words may share a feature."""
    if not features:
        return {}
    steer = replace(settings.steer, controls=[], together=[], search=False)
    alone = replace(settings, steer=steer, concept=(), shares={})
    texts = steer_layer(subject, sorted({*features.values()}), alone, ctx, evaluator)
    glued = not settings.generation.chat_template
    at_best = words_shown(texts, features, settings.choice.perplexity_budget, glued)
    at_best = at_best.astype(object).where(at_best.notna(), None)
    return {row.pop("word"): row for row in at_best.to_dict("records")}
