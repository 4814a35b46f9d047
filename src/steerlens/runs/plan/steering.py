"""The part of a plan about steering: how many texts there would be, and how long they'd take."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, NamedTuple

from steerlens.config.parse import parse_memory, parse_words
from steerlens.config.schema import RunConfig
from steerlens.config.sources import shipped_examples
from steerlens.config.steering import parse_factors, parse_prompts, with_template
from steerlens.engine.run_context import ScoreRun
from steerlens.scores.selection import part

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

CALIBRATION_TEXTS = 128


class PlannedTexts(NamedTuple):
    features: int
    """At most: a threshold may leave fewer."""
    texts: int
    seconds: float


def planned_texts(config: RunConfig, subject: Subject, n_features: int) -> PlannedTexts | None:
    """What steering with `n_features` scored features would take, timed on a few texts.

    None if nothing would be steered.
    """
    factors = parse_factors(config.steer.factors)
    if not factors:
        return None
    n_steered = min(n_features, config.selection.top_n or n_features)
    if words := parse_words(config.toward.words, "toward.words"):
        n_steered = min(n_features, len(words) * config.toward.top_n)
    arms = n_steered * (1 + len(config.steer.controls)) + len(config.steer.together)
    of_factor = len(parse_prompts(config.generation)) * config.generation.samples
    n_texts = arms * (1 + len(factors)) * of_factor
    return PlannedTexts(n_steered, n_texts, n_texts * seconds_each(config, subject, of_factor))


class PlannedWords(NamedTuple):
    words: int
    """At most: not every word has a feature to steer with."""
    texts: int
    seconds: float


def planned_words(config: RunConfig, n_layers: int, steered: PlannedTexts) -> PlannedWords | None:
    """What the texts for `coverage.words` would take, at the rate of the other texts.

    None if there are no words.
    """
    words = part(parse_words(config.coverage.words), config.shard)
    if not words:
        return None
    of_factor = len(parse_prompts(config.generation)) * config.generation.samples
    factors = parse_factors(config.steer.factors)
    n_texts = len(words) * n_layers * (1 + len(factors)) * of_factor
    return PlannedWords(len(words), n_texts, n_texts * steered.seconds / steered.texts)


def seconds_each(config: RunConfig, subject: Subject, of_factor: int) -> float:
    """Seconds a text, timed the second time: the first pays for what happens once."""
    from steerlens.steering.features import steer_layer

    has_template = bool(subject.lm.tokenizer.chat_template)
    generation = with_template(config.generation, has_template, subject.lm.name)
    factors = parse_factors(config.steer.factors)[-1:]
    steer = dataclasses.replace(
        config.steer, factors=factors, controls=[], together=[], search=False
    )
    few = dataclasses.replace(config, steer=steer, generation=generation, concept=None)
    run = ScoreRun(
        parse_memory(config.memory_budget),
        config.seed,
        corpus=config.corpus,
        examples=shipped_examples(config),
    )
    features = range(min(subject.d_sae, max(1, CALIBRATION_TEXTS // (2 * of_factor))))
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        texts = steer_layer(subject, features, few, run)
        seconds = (time.perf_counter() - start) / len(texts)
    return seconds
