"""Steering: with which of the scored features, their texts and best factors, and PMI of these."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.analysis.roles import with_roles
from steerlens.config.schema import CorpusConfig
from steerlens.config.settings import Settings, SteeringSettings
from steerlens.engine.cached_rows import cached_json
from steerlens.engine.run_context import RunContext
from steerlens.report.terminal import progress
from steerlens.results import CAPABILITY, FEATURES, GENERATIONS, STEERING, WORDS
from steerlens.results.pmi import PMI_FILE
from steerlens.runs.models import RunModels, steering_of
from steerlens.runs.run_folder import RunFolder
from steerlens.scores.selection import best_first, chosen
from steerlens.storage.files import json_text, write_json
from steerlens.storage.provenance import code_digest

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from steerlens.engine.subject import LoadedModel
    from steerlens.judges.session import RatingSession

logger = logging.getLogger(__name__)


def select(features: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Choose the rows of the table of features to steer with, those steered together first.

    Raises:
        SteerlensError: no feature passes, or the score wasn't computed.
    """
    if features.empty:
        return features
    # Another shard may have features over the threshold where this one has none.
    may_be_none = settings.shard is not None or bool(settings.steering.concept)
    rows = chosen(features, settings.selection, may_be_none)
    top_n = settings.selection.top_n
    if top_n is not None and len(rows) < top_n and not may_be_none:
        logger.warning(
            "selection.top_n=%s is more than the %s features that there are to choose from: all "
            "of them are steered with.",
            top_n,
            len(rows),
        )
    if settings.steering.steer.together and len(rows):
        best = best_first(rows, settings.selection.score)
        rows = pd.concat([best, rows.drop(index=best.index)])
    return rows


def steer(
    features: pd.DataFrame,
    settings: SteeringSettings,
    ctx: RunContext,
    models: RunModels,
    folder: RunFolder,
    session: RatingSession | None = None,
) -> pd.DataFrame:
    """Steer with features, and choose the best factor of each; writes both tables by layers.

    Args:
        features: rows of the table of features; for `steer.together` the best first.
        settings: factors, edit, prompts, and what is steered toward.
        ctx: memory, seed, and the store of finished texts.
        models: model, SAEs and evaluator.
        folder: where the tables go.
        session: the judge by whose ratings factors are chosen, for rule=judge.

    Returns:
        Their rows of `steering.parquet`.
    """
    from steerlens.analysis.factors import choose_factors
    from steerlens.steering.features import steer_layer
    from steerlens.steering.rated import missing_ratings, side_effects, with_ratings

    evaluator = models.evaluator
    tables: list[pd.DataFrame] = []
    for subject in models.subjects(features["layer"].tolist()):
        start = time.perf_counter()
        ids = features.loc[features["layer"] == subject.layer, "feature"].tolist()
        steering = steering_of(subject.lm, settings)
        rate = session and partial(
            with_ratings,
            concept=str(settings.concept_label),
            are_answers=bool(steering.generation.chat_template),
            session=session,
            ctx=ctx,
            where=f"layer {subject.layer}",
        )
        texts = steer_layer(subject, ids, steering, ctx.for_group(), evaluator, rate)
        if session and (line := missing_ratings(texts)):
            folder.note_line(f"Layer {subject.layer}: {line}")
        best = choose_factors(texts, settings.choice)
        if session:
            best = best.assign(**side_effects(texts, best))
        best = best.dropna(axis=1, how="all")
        measured = best.columns.difference(list(FEATURES.keys))
        scored = features.drop(columns=features.columns.intersection(measured))
        best = best.merge(scored, on=list(FEATURES.keys), how="left")
        tables.append(STEERING.frame(best.assign(concept=settings.concept_label)))
        folder.add(GENERATIONS, texts)
        folder.add(STEERING, tables[-1])
        judged: dict[str, Any] = {}
        if session:
            judged["judge"] = {"cost": vars(session.cost), "stopped": session.stopped}
        folder.finish_stage(
            subject,
            "steering",
            start,
            evaluator=evaluator and evaluator.identity,
            **judged,
        )
    return pd.concat(tables, ignore_index=True)


def evaluate(
    features: pd.DataFrame,
    settings: Settings,
    tasks: Sequence[Task],
    ctx: RunContext,
    models: RunModels,
    folder: RunFolder,
) -> None:
    """Write how the model answers tasks while it is steered, layer by layer.

    Args:
        features: rows of the table of features; for `steer.together` the best first.
        settings: the run's.
        tasks: of lm-evaluation-harness.
        ctx: memory, seed, and the store of finished answers.
        models: model and SAEs.
        folder: where the table goes.
    """
    from steerlens.steering.capability import evaluate_layer

    for subject in models.subjects(features["layer"].tolist()):
        start = time.perf_counter()
        ids = features.loc[features["layer"] == subject.layer, "feature"].tolist()
        rows = evaluate_layer(subject, ids, tasks, settings.steering, ctx.for_group())
        folder.add(CAPABILITY, rows)
        folder.finish_stage(subject, "tasks", start)


def write_answer(
    features: pd.DataFrame,
    steering: pd.DataFrame,
    settings: Settings,
    lm: LoadedModel,
    folder: RunFolder,
) -> None:
    """Write whether one of the candidates steers toward the run's concept.

    Args:
        features: the candidates, scored.
        steering: best factors of those that were steered with.
        settings: the run's.
        lm: its tokenizer says what stands for the concept.
        folder: where the table of words goes.
    """
    from steerlens.analysis.toward import word_row
    from steerlens.scores.concepts import concept_tokens

    concept, selection = settings.steering.concept, settings.selection
    tokens = concept_tokens(lm.tokenizer, concept)
    threshold = selection.threshold if selection.score == "concept_score" else None
    row = word_row(
        str(settings.steering.concept_label),
        tokens.texts,
        features,
        steering,
        threshold,
        settings.features.top_k,
        settings.steering.choice,
    )
    folder.add(WORDS, WORDS.frame([row]))


def measure_pmi(settings: Settings, ctx: RunContext, folder: RunFolder) -> None:
    """Write how success tokens go with the first logit-lens token in the corpus' texts.

    Nothing if no steered feature has both scores, because the others have no role.
    """
    from steerlens.analysis.pmi import generated_pairs, pmi

    steering, generations = STEERING.read(folder.path), GENERATIONS.read(folder.path)
    if with_roles(steering).empty:
        return
    corpus = settings.corpus
    generated = json_text(generated_pairs(steering, generations).to_dict("list"))
    key = {
        "pmi": dataclasses.asdict(settings.pmi),
        "pairs": hashlib.sha256(generated.encode()).hexdigest(),
        "corpus": ctx.corpus_key(),
        "code": code_digest(("analysis", "data")),
    }

    def counted() -> dict[str, Any]:
        with progress(corpus.n_tokens, "PMI", "words") as advance:
            texts = _some_texts(corpus, advance)
            return pmi(steering, generations, texts, settings.pmi).content()

    content = cached_json(ctx.store, key, PMI_FILE, counted)
    write_json(folder.path / PMI_FILE, content)
    folder.note_corpus(ctx.corpus_key())
    folder.write_provenance()


def _some_texts(corpus: CorpusConfig, advance: Callable[[int], None]) -> Iterator[str]:
    """Yield the corpus up to about `n_tokens` words, so that one without an end has one, too."""
    from steerlens.data.corpus import texts
    from steerlens.data.corpus.values import contents

    read = 0
    for text in texts(corpus, contents):
        yield text
        words = len(text.split())
        advance(words)
        read += words
        if corpus.n_tokens is not None and read >= corpus.n_tokens:
            return
