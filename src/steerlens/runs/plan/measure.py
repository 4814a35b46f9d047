"""Timing a few features and texts of a run: the part of a plan that loads the model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from steerlens.config.registry import ScoreConfig
from steerlens.config.settings import Settings
from steerlens.engine.run_context import RunContext
from steerlens.runs.models import steering_of
from steerlens.runs.plan.rates import CorpusPass, Rates
from steerlens.runs.score import features_of
from steerlens.scores import output
from steerlens.scores.selection import part, select_features
from steerlens.storage.store import Store

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

CALIBRATION_FEATURES = 128
CALIBRATION_TOKENS = 4096
CALIBRATION_TEXTS = 128
TEXTS_OF_CONCEPT = 10


class Measured(NamedTuple):
    """What only the weights tell, or the clock."""

    sizes: dict[int, int]
    """Number of features of each layer's SAE."""
    candidates: dict[int, int] | None
    """How many features of each layer may stand for the run's concept; None = it has none."""
    rates: Rates


def measure(settings: Settings) -> Measured:
    """Time a few features and texts of the first and the last layer."""
    from steerlens.engine.subject import load_subjects
    from steerlens.engine.subject.sae import sae_sources

    layers = [source.layer for source in sae_sources(settings.subject)]
    numbers = [layer for layer in layers if layer is not None]
    ends = {*numbers[:1], *numbers[-1:]}
    # The candidates of a concept are in all layers.
    probed = numbers if settings.features_concept else ends
    probe = settings.subject.of_layers(probed) if ends else settings.subject
    timed: dict[int, float] = {}
    null: dict[int, float] = {}
    passes: dict[int, CorpusPass] = {}
    sizes: dict[int, int] = {}
    candidates: dict[int, int] = {}
    text = None
    # Of the pieces in which the corpus is read.
    requests = [score.corpus_pass() for score in settings.scores.values()]
    lengths: list[int | None] = [request[0] for request in requests if request]
    lengths += [None] * settings.counts_need_a_pass
    for subject in load_subjects(probe):
        known_layers = numbers or [subject.layer]
        sizes = dict.fromkeys(known_layers, subject.d_sae) | sizes | {subject.layer: subject.d_sae}
        if settings.features_concept:
            ctx = RunContext(
                settings.subject.memory_budget,
                settings.seed,
                store=Store(settings.cache_dir / "scores"),
            )
            candidates[subject.layer] = len(features_of(subject, settings, {}, ctx))
        if ends and subject.layer not in ends:
            continue
        if not settings.concepts:
            _time_scores(subject, settings, timed, null)
            if lengths:
                passes[subject.layer] = _time_pass(subject, settings, lengths)
        if settings.steering.factors and text is None:
            text = _seconds_a_text(settings, subject)
    counted = candidates if settings.features_concept else None
    return Measured(sizes, counted, Rates(timed, null, passes, text))


def _time_scores(
    subject: Subject, settings: Settings, timed: dict[int, float], null: dict[int, float]
) -> None:
    """Time the features of a layer, and its random directions, which aren't a feature's."""
    chosen = dataclasses.replace(settings.features, min_examples=None)
    ids = select_features(chosen, subject.layer, subject.d_sae, settings.seed)
    ids = part(ids, settings.shard)[:CALIBRATION_FEATURES]
    timed[subject.layer] = _seconds_a_feature(subject, ids, settings, settings.scores)
    null[subject.layer] = sum(
        score.null_directions * _seconds_a_feature(subject, ids, settings, {name: score})
        for name, score in settings.scores.items()
        if isinstance(score, output.OutputScoreConfig) and score.null_directions
    )


def _seconds_a_feature(
    subject: Subject, ids: list[int], settings: Settings, methods: Mapping[str, ScoreConfig]
) -> float:
    """Seconds a feature, timed the second time: the first pays for what happens once."""
    from steerlens.scores.scoring import score_layer

    methods = {
        name: dataclasses.replace(score, null_directions=0)
        if isinstance(score, output.OutputScoreConfig)
        else score
        for name, score in methods.items()
        if not score.corpus_pass()
    }
    ctx = RunContext(settings.subject.memory_budget, settings.seed)
    seconds = 0.0
    for _ in range(2):
        subject.logit_lens_memo = None
        start = time.perf_counter()
        score_layer(subject, ids, methods, settings.logit_lens_k, ctx)
        seconds = time.perf_counter() - start
    return seconds / len(ids)


def _time_pass(subject: Subject, settings: Settings, lengths: Sequence[int | None]) -> CorpusPass:
    """Time a layer's pass on the corpus's first tokens, for the longest of the `lengths` asked."""
    from steerlens.engine.activations.stream import activations
    from steerlens.engine.corpus_pass import EXAMPLES, at_once, context_length, cut_corpus

    budget = settings.subject.memory_budget
    ctx = RunContext(corpus=settings.corpus)
    length = max(context_length(subject, length, ctx) for length in lengths)
    start = time.perf_counter()
    cut = list(cut_corpus(subject, settings.corpus, length, CALIBRATION_TOKENS))
    reading = time.perf_counter() - start

    def seconds(*subjects: Subject) -> float:
        start = time.perf_counter()
        activations(subjects, cut, EXAMPLES, budget)
        return (time.perf_counter() - start) / sum(map(len, cut))

    seconds(subject)  # the first pays for what happens once
    alone = seconds(subject)
    return CorpusPass(
        reading, alone, max(seconds(subject, subject) - alone, 0), at_once(subject, budget)
    )


def _seconds_a_text(settings: Settings, subject: Subject) -> float:
    """Seconds a text with its metrics, timed the second time."""
    from steerlens.steering.features import steer_layer

    steering = steering_of(subject.lm, settings.steering)
    steer = dataclasses.replace(steering.steer, controls=[], together=[], search=False)
    few = dataclasses.replace(
        steering, steer=steer, factors=steering.factors[-1:], concept=(), shares={}
    )
    ctx = RunContext(
        settings.subject.memory_budget,
        settings.seed,
        corpus=settings.corpus,
        examples=settings.shipped_examples,
    )
    of_factor = len(steering.prompts) * steering.generation.samples
    if settings.concepts:
        of_factor = TEXTS_OF_CONCEPT
    ids = range(min(subject.d_sae, max(1, CALIBRATION_TEXTS // (2 * of_factor))))
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        texts = steer_layer(subject, ids, few, ctx)
        seconds = (time.perf_counter() - start) / len(texts)
    return seconds
