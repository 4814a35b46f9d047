"""Words that are tried one after the other, until enough have a feature that steers toward them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from steerlens.config.schema import TowardConfig
from steerlens.config.settings import Settings, SteeringSettings
from steerlens.engine.run_context import RunContext
from steerlens.results import FEATURES, STEERING, WORDS
from steerlens.runs.models import RunModels, steering_of
from steerlens.runs.run_folder import RunFolder
from steerlens.runs.steer import steer

if TYPE_CHECKING:
    from steerlens.engine.subject import LoadedModel
    from steerlens.judges.session import RatingSession
    from steerlens.scores.concepts import ConceptTokens


def steer_toward_words(
    features: pd.DataFrame,
    settings: Settings,
    ctx: RunContext,
    models: RunModels,
    lm: LoadedModel,
    folder: RunFolder,
    session: RatingSession | None = None,
) -> None:
    """Steer toward one word of `toward.words` after the other until enough have a feature.

    Candidates are found by the promoted tokens in the table of features, and those of all words
    are scored together; a feature is steered with toward one word only.

    Args:
        features: the table of features.
        settings: the run's.
        ctx: memory, seed and store.
        models: model, SAEs and evaluator.
        lm: the run's model.
        folder: where the tables go.
        session: the judge, for choice.rule=judge.
    """
    from steerlens.analysis.toward import word_row
    from steerlens.steering.coverage import tokens_or_reason

    words, toward = settings.toward_words, settings.toward
    enough = len(words) if toward.n is None else toward.n
    tokens = tokens_or_reason(lm.tokenizer, words)
    scored = _scored_toward(features, tokens, settings, ctx, models)
    rows_of = _features_of_words(words, scored, toward)
    tried: list[dict[str, object]] = []
    n_found, n_ahead = 0, 0
    for index, word in enumerate(words):
        if index == n_ahead:
            n_ahead += enough - n_found
            of_words = pd.concat([rows_of[name] for name in words[index:n_ahead]])
            _steer_ahead(of_words, settings.steering, ctx, models)
        of_word = tokens[word]
        if isinstance(of_word, str):
            tried.append({"word": word, "reason": of_word.rstrip(".")})
            continue
        rows = rows_of[word]
        steering = STEERING.frame([])
        if len(rows):
            toward_word = dataclasses.replace(settings.steering, concept=(word,))
            steering = steer(rows, toward_word, ctx, models, folder, session)
        candidates = scored.loc[scored["word"] == word]
        top_k = settings.features.top_k
        choice = settings.steering.choice
        row = word_row(word, of_word.texts, candidates, steering, toward.threshold, top_k, choice)
        tried.append(row)
        n_found += row.get("reason") is None
        if n_found == enough:
            break
    folder.add(WORDS, WORDS.frame(tried))


def _features_of_words(
    words: Sequence[str], scored: pd.DataFrame, toward: TowardConfig
) -> dict[str, pd.DataFrame]:
    """Give the features to steer with toward each word, the best first, no feature twice."""
    used: set[tuple[int, int]] = set()
    rows_of: dict[str, pd.DataFrame] = {}
    for word in words:
        rows = scored.loc[(scored["word"] == word) & (scored["concept_score"] >= toward.threshold)]
        rows = rows.loc[[key not in used for key in _layers_and_features(rows)]]
        rows = rows.sort_values("concept_score", ascending=False, kind="stable")
        rows_of[word] = rows.head(toward.top_n).drop(columns="word")
        used |= {*_layers_and_features(rows_of[word])}
    return rows_of


def _steer_ahead(
    features: pd.DataFrame, settings: SteeringSettings, ctx: RunContext, models: RunModels
) -> None:
    """Make the texts of several words' features in one batch, for `steer` to find in the store: a
    word's alone are so few that most of the time would go into starting.

    A search asks for factors by a word's success, so it goes word by word.
    """
    from steerlens.steering.features import steer_layer

    if features.empty or ctx.store is None or settings.steer.search:
        return
    for subject in models.subjects(features["layer"].tolist()):
        ids = features.loc[features["layer"] == subject.layer, "feature"].tolist()
        steering = steering_of(subject.lm, settings)
        steer_layer(subject, ids, steering, ctx.for_group(), models.evaluator)


def _scored_toward(
    features: pd.DataFrame,
    tokens: Mapping[str, ConceptTokens | str],
    settings: Settings,
    ctx: RunContext,
    models: RunModels,
) -> pd.DataFrame:
    """Return a row of the table of features for each word and candidate, scored toward the word."""
    from steerlens.analysis.toward import lens_candidates
    from steerlens.steering.coverage import prompt_settings, scores_toward

    formed = {word: of_word for word, of_word in tokens.items() if not isinstance(of_word, str)}
    ids = {word: [*of_word.texts] for word, of_word in formed.items()}
    pairs = lens_candidates(features, ids, settings.features.top_k)
    columns = features.drop(columns=["concept_score", "concept_token"])
    if pairs.empty:
        return pairs.assign(concept_score=pd.Series(dtype=float))
    score = prompt_settings(settings.scores.values())
    tables = []
    for subject in models.subjects(pairs["layer"].tolist()):
        of_layer = pairs.loc[pairs["layer"] == subject.layer]
        word_features = [*of_layer[["word", "feature"]].itertuples(index=False, name=None)]
        scores = scores_toward(subject, word_features, formed, score, ctx.for_group())
        tables.append(
            of_layer.assign(
                concept_score=scores["output_score"], concept_token=scores["output_token"]
            ).merge(columns, on=list(FEATURES.keys), how="left")
        )
    return pd.concat(tables, ignore_index=True)


def _layers_and_features(rows: pd.DataFrame) -> list[tuple[int, int]]:
    return [*rows[["layer", "feature"]].itertuples(index=False, name=None)]
