"""Concepts of a set, steered toward by every method and rated: the run of Table 1."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from steerlens.config.folders import has_chat_template
from steerlens.config.settings import Settings
from steerlens.config.steering import AUTO
from steerlens.engine.run_context import RunContext
from steerlens.judges.lexical import refuse_too_few_unsteered
from steerlens.judges.vocabulary import refuse_too_few
from steerlens.results import CONCEPTS, FEATURES, RATINGS
from steerlens.results.text import printable
from steerlens.runs.models import RunModels, steering_of
from steerlens.runs.run_folder import RunFolder
from steerlens.scores.selection import part

if TYPE_CHECKING:
    from steerlens.data.concept_sets import ConceptSet
    from steerlens.judges.session import RatingSession


def steer_toward_concepts(
    settings: Settings,
    session: RatingSession,
    ctx: RunContext,
    models: RunModels,
    folder: RunFolder,
) -> None:
    """Steer toward the concepts, have the texts rated, and score the features that stand for them.

    The tables of concepts, of their features and of rated texts are written layer by layer.

    Args:
        settings: the run's.
        session: the judge, and what it has taken.
        ctx: memory, seed and store.
        models: model, SAEs and evaluator.
        folder: where the tables go.

    Raises:
        SteerlensError: a concept lacks what a method or the judge needs, or nothing answers.
    """
    from steerlens.engine.subject.model import load_weights
    from steerlens.engine.subject.sae import sae_sources
    from steerlens.steering.concepts import score_named_features, steer_concepts

    assert settings.concepts is not None
    for source in sae_sources(settings.subject):
        if source.layer is not None:
            refuse_lacking_texts(settings, concepts_before_loading(settings, source.layer))
    for subject in models.subjects():
        start = time.perf_counter()
        steering = steering_of(subject.lm, settings.steering)
        folder.note(chat_template=steering.generation.chat_template)
        concepts = concepts_of_shard(settings, subject.layer, steering.generation.chat_template)
        for note in concepts.notes:
            print(printable(note))
        layer_ctx = ctx.for_group()
        steered = steer_concepts(
            subject,
            concepts,
            settings.concepts,
            steering,
            layer_ctx,
            session,
            lambda: load_weights(settings.subject),
            models.evaluator,
        )
        features = score_named_features(
            subject, steered.concepts, settings.scores, settings.logit_lens_k, layer_ctx
        )
        folder.add(FEATURES, features)
        folder.add(CONCEPTS, steered.concepts)
        folder.add(RATINGS, steered.ratings)
        judged = {"cost": vars(session.cost), "stopped": session.stopped}
        folder.finish_stage(subject, "concepts", start, judge=judged, concepts=list(concepts.notes))
    for line in filter(None, (session.sentence(), session.stopped)):
        print(line)


def concepts_of_shard(
    settings: Settings, layer: int, chat_template: bool, texts: bool = True
) -> ConceptSet:
    """Load this shard's part of the concepts of a layer; see `load_concepts`."""
    from steerlens.data.concept_sets.load import load_concepts

    assert settings.concepts is not None
    concepts = load_concepts(settings.concepts, layer, settings.seed, chat_template, texts)
    return dataclasses.replace(concepts, concepts=tuple(part(concepts.concepts, settings.shard)))


def concepts_before_loading(settings: Settings, layer: int, texts: bool = True) -> ConceptSet:
    """Load this shard's part of the concepts of a layer, whose model isn't loaded yet."""
    chat = settings.steering.generation.chat_template
    if chat == AUTO:
        chat = has_chat_template(settings.subject.model)
    return concepts_of_shard(settings, layer, bool(chat), texts)


def refuse_lacking_texts(settings: Settings, concepts: ConceptSet) -> None:
    """Refuse concepts that lack texts for a method or for judge=lexical, without a model.

    Args:
        settings: its methods, judge and texts say what is needed.
        concepts: of a layer.

    Raises:
        SteerlensError: a concept can't be learnt, or there would be too few unsteered texts.
    """
    from steerlens.steering.methods.arms import PROMPT, SAE

    assert settings.concepts is not None
    assert settings.judge is not None
    named = all(concept.feature is not None for concept in concepts.concepts)
    need_none = {PROMPT, "Random", *([SAE] if named else [])}
    if not need_none.issuperset(settings.concepts.methods):
        concepts.check_texts()
    if settings.judge.name == "lexical":
        for concept in concepts.concepts:
            refuse_too_few(len(concept.positives), len(concept.negatives), concept.name)
        prompts = sum(
            len((*concept.choosing, *concept.evaluating)) for concept in concepts.concepts
        )
        refuse_too_few_unsteered(prompts * settings.steering.generation.samples)
