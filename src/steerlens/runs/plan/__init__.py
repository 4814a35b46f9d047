"""What a run would do and how long it would take, timed on a few of its features."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.text import Text

from steerlens.config.catalog import read_release, releases
from steerlens.config.gguf import gguf_file
from steerlens.config.kinds import CONCEPTS
from steerlens.config.registry import ScoreConfig
from steerlens.config.schema import CorpusConfig, ModelConfig
from steerlens.config.settings import Settings, SubjectSettings
from steerlens.data.corpus.webtext import webtext
from steerlens.engine.examples import read_metadata
from steerlens.engine.run_context import RunContext
from steerlens.report.concept_page import Line, print_hanging
from steerlens.report.terminal import console_on, duration
from steerlens.results.text import visible
from steerlens.runs.memory_check import device_type, dtype_name, estimate_weights, gigabytes
from steerlens.runs.plan.concepts import planned_concepts
from steerlens.runs.plan.steering import planned_texts, planned_words
from steerlens.runs.preflight import local_folder
from steerlens.scores import output
from steerlens.scores.selection import part, select_features

CALIBRATION_FEATURES = 128
CALIBRATION_TOKENS = 4096
TABLE_BYTES = 1000
"""Of one feature in features.parquet and W&B's table, generously."""
TEXT_BYTES = 200
"""Of one text in generations.parquet."""


def print_plan(settings: Settings) -> None:
    """Print what a run would do and need, timed on a few of its features."""
    methods, subject = settings.scores, settings.subject
    weights = estimate_weights(settings)
    rows = [
        ("model", f"{subject.model.title} ({subject.model.path})"),
        ("SAE", subject.sae.title),
        ("scores", ", ".join(methods)),
        *_texts_of(settings),
        ("device", f"{device_type(subject)}, {dtype_name(subject)}"),
        (
            "memory",
            f"{gigabytes(weights) if weights else 'unknown'} of weights, and up to "
            f"{gigabytes(subject.memory_budget)} beyond (memory_budget)",
        ),
    ]
    if not weights_are_here(subject):
        rows += _guessed(subject, weights)
    elif settings.kind is CONCEPTS:
        rows += _toward_concepts(settings)
    else:
        rows += _measured(settings)
    width = max(len(name) for name, _ in rows)
    print("This would run (plan=true stops here):")
    lines = (Line(f"  {name:<{width}}  ", Text(visible(text))) for name, text in rows)
    print_hanging(console_on(sys.stdout), lines)


def _texts_of(settings: Settings) -> list[tuple[str, str]]:
    """Return where the scores take from what features fire on, if any asks."""
    rows, methods, corpus = [], settings.scores, settings.corpus
    files = {file for method in methods.values() for file in method.examples()}
    for file in sorted(files):
        n_tokens = max(layer["n_tokens"] for layer in read_metadata(file)["saes"].values())
        rows.append(("examples", f"those of {file.name}, which ships, from {n_tokens:,} tokens"))
    if settings.counts_need_a_pass or any(method.corpus_pass() for method in methods.values()):
        text = corpus.path or corpus.name
        rows.append(("corpus", f"a pass of our own over corpus={corpus.name} ({text})"))
    return rows


def weights_are_here(subject: SubjectSettings) -> bool:
    """Return whether model and SAE need no download."""
    return _model_is_here(subject.model) and (
        subject.sae.path is not None or _release_is_here(subject.sae.release)
    )


def _model_is_here(model: ModelConfig) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if gguf_file(model) or local_folder(model):
        return True
    files = ("model.safetensors", "model.safetensors.index.json")
    cached_files = [
        try_to_load_from_cache(model.path, file, revision=model.revision) for file in files
    ]
    return any(isinstance(path, str) for path in cached_files)


def _release_is_here(release: str | None) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    if release not in releases():
        return False
    repo_id = read_release(release)["repo_id"]
    return (Path(HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}" / "snapshots").is_dir()


def _guessed(subject: SubjectSettings, weights: int | None) -> list[tuple[str, str]]:
    layers = subject.layers
    return [
        ("layers", layers if isinstance(layers, str) else ", ".join(map(str, layers))),
        ("disk", f"a download of {gigabytes(weights) if weights else 'unknown size'} first"),
        ("time", "unknown until the weights are here, because it is measured on them"),
    ]


def _toward_concepts(settings: Settings) -> list[tuple[str, str]]:
    """Return times a few texts of the first layer."""
    from steerlens.engine.subject import load_subjects
    from steerlens.engine.subject.sae import sae_sources

    layers = [source.layer for source in sae_sources(settings.subject)]
    first = settings.subject if layers[0] is None else settings.subject.of_layers([layers[0]])
    subject = next(load_subjects(first))
    planned = planned_concepts(settings, subject, len(layers))
    return [
        ("layers", ", ".join(map(str, layers))),
        ("concepts", f"{planned.concepts:,}, each in {planned.arms} ways"),
        ("steering", f"{planned.texts:,} texts, about {duration(planned.seconds)}"),
        ("ratings", planned.rating),
        ("time", "besides, what methods learn: minutes for SSV, ReFT-r1, LoReFT and LoRA each"),
        ("disk", f"about {gigabytes(planned.texts * TEXT_BYTES + 1e6)} in the run's folder"),
    ]


def _features(settings: Settings, layer: int, d_sae: int) -> list[int]:
    # Which features fire often enough, only the pass tells: at most all of them.
    chosen = dataclasses.replace(settings.features, min_examples=None)
    return part(select_features(chosen, layer, d_sae, settings.seed), settings.shard)


def _measured(settings: Settings) -> list[tuple[str, str]]:
    """Return times a few features of the first and the last layer; the cost is linear in
    between.
    """
    from steerlens.engine.subject import load_subjects
    from steerlens.engine.subject.sae import sae_sources

    methods = settings.scores
    layers = [source.layer for source in sae_sources(settings.subject)]
    ends = sorted({layer for layer in (layers[0], layers[-1]) if layer is not None})
    probe = settings.subject.of_layers(ends) if ends else settings.subject
    timed: dict[int, float] = {}
    timed_null: dict[int, float] = {}
    null = {
        name: score
        for name, score in methods.items()
        if isinstance(score, output.OutputScoreConfig) and score.null_directions
    }
    passes: dict[int, _Pass] = {}
    counts: dict[int, int] = {}
    subject = None
    lengths = [request[0] for asked_for in methods.values() if (request := asked_for.corpus_pass())]
    if settings.counts_need_a_pass:
        lengths.append(None)
    for subject in load_subjects(probe):
        features = _features(settings, subject.layer, subject.d_sae)
        timed[subject.layer] = _seconds_each(subject, features, settings, methods)
        timed_null[subject.layer] = sum(
            score.null_directions * _seconds_each(subject, features, settings, {name: score})
            for name, score in null.items()
        )
        if lengths:
            passes[subject.layer] = _time_pass(subject, settings, lengths)
        counts = {
            layer: len(_features(settings, layer, subject.d_sae))
            for layer in (layers if ends else [subject.layer])
            if layer is not None
        }
    n_features = sum(counts.values())
    n_directions = sum(score.null_directions for score in null.values()) * len(counts)
    steering = planned_texts(settings, subject, n_features) if subject else None
    each = np.interp(list(counts), list(timed), list(timed.values()))
    seconds = float(np.dot(each, list(counts.values())))
    seconds += float(np.interp(list(counts), list(timed_null), list(timed_null.values())).sum())
    if passes:
        seconds += _corpus_seconds(list(counts), passes, _corpus_tokens(settings.corpus))
    text_rows = []
    n_bytes = n_features * TABLE_BYTES + 1e6
    if steering:
        n_bytes += steering.texts * TEXT_BYTES
        text_rows = [
            (
                "steering",
                f"up to {steering.texts:,} texts of {steering.features:,} "
                f"{'candidates' if settings.features_concept else 'features'}, about "
                f"{duration(steering.seconds)}",
            )
        ]
    words = planned_words(settings, len(counts), steering) if steering else None
    if words:
        n_bytes += words.words * len(counts) * TABLE_BYTES
        text_rows.append(
            (
                "words",
                f"up to {words.texts:,} texts for {words.words:,} words in each layer, about "
                f"{duration(words.seconds)}",
            )
        )
    return [
        ("layers", ", ".join(map(str, counts))),
        ("features", f"{n_features:,}"),
        (
            "forwards",
            f"{n_features * len(methods) + n_directions:,} rows of one position, "
            f"{len(counts) * len(methods)} of the whole prompt",
        ),
        ("time", f"about {duration(seconds)} of scoring"),
        *text_rows,
        ("disk", f"about {gigabytes(n_bytes)} in the run's folder"),
    ]


def _seconds_each(
    subject: Any, features: list[int], settings: Settings, methods: Mapping[str, ScoreConfig]
) -> float:
    """Return seconds a feature, timed the second time: the first pays for what happens once.

    Without random directions, which are a layer's and not a feature's.
    """
    from steerlens.scores.scoring import score_layer

    methods = {
        name: dataclasses.replace(score, null_directions=0)
        if isinstance(score, output.OutputScoreConfig)
        else score
        for name, score in methods.items()
        if not score.corpus_pass()
    }
    few = features[:CALIBRATION_FEATURES]
    ctx = RunContext(settings.subject.memory_budget, settings.seed)
    seconds = 0.0
    for _ in range(2):
        subject.logit_lens_memo = None
        start = time.perf_counter()
        score_layer(subject, few, methods, settings.logit_lens_k, ctx)
        seconds = time.perf_counter() - start
    return seconds / len(few)


class _Pass(NamedTuple):
    """What a pass over the corpus costs, in seconds."""

    texts: float
    """Once."""
    alone: float
    """A token, for this layer alone."""
    more: float
    """A token, for one more SAE in the same pass."""
    at_once: int
    """SAEs that share a pass."""


def _time_pass(subject: Any, settings: Settings, lengths: Sequence[int | None]) -> _Pass:
    """Return times a layer's pass on the corpus's first tokens, for the longest of the `lengths`
    asked.
    """
    from steerlens.engine.activations.stream import activations
    from steerlens.engine.corpus_pass import EXAMPLES, at_once, context_length, cut_corpus

    budget = settings.subject.memory_budget
    ctx = RunContext(corpus=settings.corpus)
    length = max(context_length(subject, length, ctx) for length in lengths)
    start = time.perf_counter()
    cut = list(cut_corpus(subject, settings.corpus, length, CALIBRATION_TOKENS))
    reading = time.perf_counter() - start

    def seconds(*subjects: Any) -> float:
        start = time.perf_counter()
        activations(subjects, cut, EXAMPLES, budget)
        return (time.perf_counter() - start) / sum(map(len, cut))

    seconds(subject)  # the first pays for what happens once
    alone = seconds(subject)
    return _Pass(
        reading, alone, max(seconds(subject, subject) - alone, 0), at_once(subject, budget)
    )


def _corpus_seconds(layers: list[int], passes: Mapping[int, _Pass], n_tokens: float) -> float:
    """Return seconds of all passes: each runs the model as far as its last layer."""
    texts, alone, more, at_once = (
        np.interp(layers, list(passes), column) for column in zip(*passes.values(), strict=True)
    )
    size = int(at_once.min())
    groups = [slice(start, start + size) for start in range(0, len(layers), size)]
    return sum(
        texts[group][0] + n_tokens * (alone[group][-1] + more[group][:-1].sum()) for group in groups
    )


def _corpus_tokens(corpus: CorpusConfig) -> float:
    """Return how many tokens a run will read: at most what it asks for, at about 4 bytes each."""
    tokens_asked = math.inf if corpus.n_tokens is None else corpus.n_tokens
    if corpus.source in ("embedded", "hub"):
        return tokens_asked
    if corpus.source == "webtext":
        return min(tokens_asked, sum(map(len, webtext())) / 4)
    return min(tokens_asked, Path(str(corpus.path)).stat().st_size / 4)
