"""The part of a plan about steering: how many texts there would be."""

from __future__ import annotations

from typing import NamedTuple

from steerlens.config.settings import Settings
from steerlens.scores.selection import part


class PlannedTexts(NamedTuple):
    """Texts of steered features."""

    features: int
    """At most: a threshold may leave fewer."""
    texts: int
    edits: int
    """Features, controls and features together, each at every factor but 0."""


def planned_texts(settings: Settings, n_features: int) -> PlannedTexts | None:
    """Count the texts that steering with `n_features` scored features would make.

    None if nothing would be steered.
    """
    steering = settings.steering
    if not steering.factors:
        return None
    n_steered = min(n_features, settings.selection.top_n or n_features)
    if settings.toward_words:
        n_steered = min(n_features, len(settings.toward_words) * settings.toward.top_n)
    steer = steering.steer
    arms = n_steered * (1 + len(steer.controls)) + len(steer.together) + bool(steering.shares)
    of_factor = len(steering.prompts) * steering.generation.samples
    n_texts = arms * (1 + len(steering.factors)) * of_factor
    return PlannedTexts(n_steered, n_texts, arms * len(steering.factors))


class PlannedWords(NamedTuple):
    """Texts toward the words whose coverage is measured."""

    words: int
    """At most: not every word has a feature to steer with."""
    texts: int


def planned_words(settings: Settings, n_layers: int) -> PlannedWords | None:
    """Count the texts for `coverage.words`.

    None if there are no words.
    """
    words = part(settings.coverage_words, settings.shard)
    if not words:
        return None
    steering = settings.steering
    of_factor = len(steering.prompts) * steering.generation.samples
    n_texts = len(words) * n_layers * (1 + len(steering.factors)) * of_factor
    return PlannedWords(len(words), n_texts)
