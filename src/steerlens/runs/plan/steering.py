"""The part of a plan about steering: how many texts there would be, and how long they'd take."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, NamedTuple

from steerlens.config.settings import Settings
from steerlens.engine.run_context import RunContext
from steerlens.runs.models import steering_of
from steerlens.scores.selection import part

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

CALIBRATION_TEXTS = 128


class PlannedTexts(NamedTuple):
    """What steering with features would take."""

    features: int
    """At most: a threshold may leave fewer."""
    texts: int
    seconds: float


def planned_texts(settings: Settings, subject: Subject, n_features: int) -> PlannedTexts | None:
    """Return what steering with `n_features` scored features would take, timed on a few texts.

    None if nothing would be steered.
    """
    steering = settings.steering
    if not steering.factors:
        return None
    n_steered = min(n_features, settings.selection.top_n or n_features)
    if settings.toward_words:
        n_steered = min(n_features, len(settings.toward_words) * settings.toward.top_n)
    steer = steering.steer
    arms = n_steered * (1 + len(steer.controls)) + len(steer.together)
    of_factor = len(steering.prompts) * steering.generation.samples
    n_texts = arms * (1 + len(steering.factors)) * of_factor
    return PlannedTexts(n_steered, n_texts, n_texts * seconds_each(settings, subject, of_factor))


class PlannedWords(NamedTuple):
    """What looking for words would take."""

    words: int
    """At most: not every word has a feature to steer with."""
    texts: int
    seconds: float


def planned_words(settings: Settings, n_layers: int, steered: PlannedTexts) -> PlannedWords | None:
    """Return what the texts for `coverage.words` would take, at the rate of the other texts.

    None if there are no words.
    """
    words = part(settings.coverage_words, settings.shard)
    if not words:
        return None
    steering = settings.steering
    of_factor = len(steering.prompts) * steering.generation.samples
    n_texts = len(words) * n_layers * (1 + len(steering.factors)) * of_factor
    return PlannedWords(len(words), n_texts, n_texts * steered.seconds / steered.texts)


def seconds_each(settings: Settings, subject: Subject, of_factor: int) -> float:
    """Time a text, in seconds, the second time: the first pays for what happens once."""
    from steerlens.steering.features import steer_layer

    steering = steering_of(subject.lm, settings.steering)
    steer = dataclasses.replace(steering.steer, controls=[], together=[], search=False)
    few = dataclasses.replace(steering, steer=steer, factors=steering.factors[-1:], concept=())
    ctx = RunContext(
        settings.subject.memory_budget,
        settings.seed,
        corpus=settings.corpus,
        examples=settings.shipped_examples,
    )
    features = range(min(subject.d_sae, max(1, CALIBRATION_TEXTS // (2 * of_factor))))
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        texts = steer_layer(subject, features, few, ctx)
        seconds = (time.perf_counter() - start) / len(texts)
    return seconds
