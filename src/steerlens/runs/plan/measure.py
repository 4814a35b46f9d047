"""Timing a few features and texts of a run: the part of a plan that loads the model."""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from steerlens.config.registry import ScoreConfig, load_part
from steerlens.config.settings import Settings
from steerlens.engine.run_context import RunContext
from steerlens.report.terminal import phase
from steerlens.runs.models import RunModels, steering_of
from steerlens.runs.plan.rates import CorpusPass, Rates
from steerlens.runs.score import features_of
from steerlens.scores import output
from steerlens.scores.selection import part, select_features
from steerlens.storage.store import Store

if TYPE_CHECKING:
    import numpy as np

    from steerlens.engine.subject import Subject

MOST_FEATURES, SECONDS = 128, 2.0
"""A method is timed on one feature, on two, and on as many as these seconds let expect."""
CALIBRATION_TOKENS = 1024
CALIBRATION_TEXTS = 32
"""Half of them at factor 0. So many rows cost nearly as much a text as a full batch."""


class Measured(NamedTuple):
    """What only the weights tell, or the clock."""

    sizes: dict[int, int]
    """Number of features of each layer's SAE."""
    candidates: dict[int, int] | None
    """How many features of each layer may stand for the run's concept; None = it has none."""
    rates: Rates


class Cost(NamedTuple):
    """Seconds that a scoring method takes."""

    once: float
    """In a run: what all layers share."""
    block: float
    """For each block of features, however many it has."""
    feature: float


def measure(settings: Settings) -> Measured:
    """Time a few features and texts of the first and the last layer."""
    print(f"Timing {_what_is_timed(settings)}", file=sys.stderr, flush=True)
    with phase("importing torch and SAELens"):
        from steerlens.engine.subject.sae import sae_sources

    layers = [source.layer for source in sae_sources(settings.subject)]
    numbers = [layer for layer in layers if layer is not None]
    ends = {*numbers[:1], *numbers[-1:]}
    # The candidates of a concept are in all layers.
    probed = numbers if settings.features_concept else ends
    models = RunModels(settings.subject)
    rates = Rates()
    sizes: dict[int, int] = {}
    candidates: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for subject in models.subjects(probed or None):
            layer, known_layers = subject.layer, numbers or [subject.layer]
            sizes = dict.fromkeys(known_layers, subject.d_sae) | sizes | {layer: subject.d_sae}
            if settings.features_concept:
                ctx = RunContext(
                    settings.subject.memory_budget,
                    settings.seed,
                    corpus=settings.corpus,
                    lens=settings.lens,
                    store=Store(settings.cache_dir / "scores"),
                )
                with phase(f"layer {layer}: looking for the concept's features"):
                    candidates[layer] = len(features_of(subject, settings, {}, ctx))
            if ends and layer not in ends:
                continue
            if not settings.concepts:
                ctx = RunContext(
                    settings.subject.memory_budget,
                    settings.seed,
                    corpus=settings.corpus,
                    examples=settings.shipped_examples,
                    store=Store(Path(folder)),
                    later=models.after,
                )
                rates = _with_scores(rates, subject, settings, ctx)
                if lengths := _lengths(settings):
                    with phase(f"layer {layer}: timing the pass over the corpus"):
                        timed = _time_pass(subject, settings, lengths)
                    rates = dataclasses.replace(rates, passes={**rates.passes, layer: timed})
            if settings.steering.factors and rates.text is None:
                with phase(f"layer {layer}: timing texts and their metrics"):
                    rates = dataclasses.replace(rates, text=_seconds_a_text(settings, subject))
    return Measured(sizes, candidates if settings.features_concept else None, rates)


def _what_is_timed(settings: Settings) -> str:
    """Say what is about to be timed, in a line."""
    timed = []
    if not settings.concepts and (n_methods := len(settings.scores)):
        methods = f"each of {n_methods} scores" if n_methods > 1 else "the score"
        timed.append(f"{methods} on at most {MOST_FEATURES} features")
        if _lengths(settings):
            timed.append(f"{CALIBRATION_TOKENS:,} tokens of the corpus")
    parts = [f"{' and '.join(timed)} in the first and the last layer"] if timed else []
    if settings.steering.factors:
        parts.append(f"{CALIBRATION_TEXTS} texts with their metrics")
    return ", ".join(parts)


def _with_scores(rates: Rates, subject: Subject, settings: Settings, ctx: RunContext) -> Rates:
    """Return `rates` with what the features of one more layer take, and its random directions."""
    import torch

    from steerlens.engine.logit_lens import logit_lens

    layer, methods = subject.layer, settings.scores
    chosen = dataclasses.replace(settings.features, min_examples=None)
    ids = select_features(chosen, layer, subject.d_sae, settings.seed)
    ids = part(ids, settings.shard)[:MOST_FEATURES]
    if not ids:
        return rates
    k = max([settings.logit_lens_k, *(getattr(config, "top_k", 0) for config in methods.values())])

    def look_up(features_n: np.ndarray, ctx: RunContext) -> None:
        subject.logit_lens_memo = None
        logit_lens(subject, torch.from_numpy(features_n), k, ctx.memory_budget)

    with phase(f"layer {layer}: timing the tokens that features promote"):
        costs = [_time(look_up, ids, ctx)]
    # Once for all methods, as in a run.
    logit_lens(subject, torch.tensor(ids), k, ctx.memory_budget)
    null = 0.0
    for name, config in methods.items():
        if config.corpus_pass():
            continue
        reduced, times = config.reduced()
        if isinstance(reduced, output.OutputScoreConfig):
            reduced = dataclasses.replace(reduced, null_directions=0)

        def score(features_n: np.ndarray, ctx: RunContext, config: ScoreConfig = reduced) -> None:
            load_part("scores", config.method).score(subject, features_n, config, ctx)

        with phase(f"layer {layer}: timing score={name}"):
            timed = _time(score, ids, ctx, "seed" in config.uses())
            cost = Cost(*(times * seconds for seconds in timed))
        costs.append(cost)
        if isinstance(config, output.OutputScoreConfig):
            null += config.null_directions * cost.feature
    return dataclasses.replace(
        rates,
        feature={**rates.feature, layer: sum(cost.feature for cost in costs)},
        block={**rates.block, layer: sum(cost.block for cost in costs)},
        null={**rates.null, layer: null},
        # What the layers share, the first has made.
        once=rates.once + sum(cost.once for cost in costs),
    )


def _time(
    score: Callable[[np.ndarray, RunContext], None],
    ids: list[int],
    ctx: RunContext,
    depends_on_seed: bool = False,
) -> Cost:
    """Time few features, and more of them: what both take alike isn't the features'."""
    import numpy as np

    def seconds(n: int, ctx: RunContext = ctx) -> float:
        start = time.perf_counter()
        score(np.array(ids[:n], dtype=np.int64), ctx.for_group())
        return time.perf_counter() - start

    # What happens once in a process, and with another seed, so that what depends on the run's
    # isn't there yet.
    seconds(1, dataclasses.replace(ctx, seed=ctx.seed + 1))
    first = seconds(1) if depends_on_seed else 0.0
    least = seconds(1)
    once, n = max(0.0, first - least), min(len(ids), 2)
    if n == 1:
        return Cost(once, 0.0, least)
    more = seconds(n)
    expected = max(more - least, least / MOST_FEATURES)
    if (n_in_time := min(len(ids), int(SECONDS / expected))) > n:
        n, more = n_in_time, seconds(n_in_time)
    feature = max(0.0, more - least) / (n - 1)
    return Cost(once, max(0.0, least - feature), feature)


def _lengths(settings: Settings) -> list[int | None]:
    """Give the lengths of pieces in which the corpus is read; [] where it isn't."""
    requests = [score.corpus_pass() for score in settings.scores.values()]
    of_counts: list[int | None] = [None] if settings.counts_need_a_pass else []
    return [request[0] for request in requests if request] + of_counts


def _time_pass(subject: Subject, settings: Settings, lengths: list[int | None]) -> CorpusPass:
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

    activations([subject], cut[:1], EXAMPLES, budget)  # what happens once
    alone = seconds(subject)
    return CorpusPass(
        reading, alone, max(seconds(subject, subject) - alone, 0), at_once(subject, budget)
    )


def _seconds_a_text(settings: Settings, subject: Subject) -> float:
    """Return seconds a text with its metrics, after one that pays for what happens once."""
    from steerlens.steering.features import steer_layer

    steering = steering_of(subject.lm, settings.steering)
    steer = dataclasses.replace(steering.steer, controls=[], together=[], search=False)
    samples = min(steering.generation.samples, CALIBRATION_TEXTS // 2)
    few = dataclasses.replace(
        steering,
        steer=steer,
        factors=steering.factors[-1:],
        prompts=steering.prompts[: CALIBRATION_TEXTS // 2 // samples],
        generation=dataclasses.replace(steering.generation, samples=samples),
        concept=(),
        shares={},
    )
    ctx = RunContext(
        settings.subject.memory_budget,
        settings.seed,
        corpus=settings.corpus,
        examples=settings.shipped_examples,
    )
    tiny = dataclasses.replace(few.generation, samples=1, max_new_tokens=2)
    steer_layer(
        subject, [0], dataclasses.replace(few, prompts=few.prompts[:1], generation=tiny), ctx
    )
    of_factor = len(few.prompts) * samples
    n_features = min(subject.d_sae, math.ceil(CALIBRATION_TEXTS / 2 / of_factor))
    start = time.perf_counter()
    texts = steer_layer(subject, range(n_features), few, ctx)
    return (time.perf_counter() - start) / len(texts)
