"""What a run would do and how long it would take, timed on a few of its features."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steerlens.catalog import read_release, releases
from steerlens.config.check import local_folder
from steerlens.config.parse import parse_memory, parse_scores
from steerlens.config.schema import CorpusConfig, ModelConfig, RunConfig
from steerlens.fit import device_type, dtype_name, estimate_weights, gigabytes
from steerlens.registry import ScoreConfig
from steerlens.scores import ScoreRun
from steerlens.selection import select_features
from steerlens.terminal import duration

CALIBRATION_FEATURES = 128
CALIBRATION_TOKENS = 4096
TABLE_BYTES = 1000
"""Of one feature in features.parquet and W&B's table, generously."""


def print_plan(config: RunConfig) -> None:
    """Prints what a run would do and need, timed on a few of its features."""
    methods = parse_scores(config.score)
    weights = estimate_weights(config)
    rows = [
        ("model", f"{config.model.name} ({config.model.path})"),
        ("SAE", config.sae.name),
        ("scores", ", ".join(methods)),
        ("device", f"{device_type(config)}, {dtype_name(config)}"),
        (
            "memory",
            f"{gigabytes(weights) if weights else 'unknown'} of weights, and up to "
            f"{gigabytes(parse_memory(config.memory_budget))} beyond (memory_budget)",
        ),
    ]
    rows += _measured(config, methods) if weights_are_here(config) else _guessed(config, weights)
    width = max(len(name) for name, _ in rows)
    print("This would run (plan=true stops here):")
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")


def weights_are_here(config: RunConfig) -> bool:
    """Whether model and SAE need no download."""
    return _model_is_here(config.model) and (
        config.sae.path is not None or _release_is_here(config.sae.release)
    )


def _model_is_here(model: ModelConfig) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if local_folder(model) is not None:
        return True
    files = ("model.safetensors", "model.safetensors.index.json")
    found = [try_to_load_from_cache(model.path, file, revision=model.revision) for file in files]
    return any(isinstance(path, str) for path in found)


def _release_is_here(release: str | None) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    if release not in releases():
        return False
    repo_id = read_release(release)["repo_id"]
    return (Path(HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}" / "snapshots").is_dir()


def _guessed(config: RunConfig, weights: int | None) -> list[tuple[str, str]]:
    return [
        ("layers", str(config.layer)),
        ("disk", f"a download of {gigabytes(weights) if weights else 'unknown size'} first"),
        ("time", "unknown until the weights are here, because it is measured on them"),
    ]


def _measured(config: RunConfig, methods: Mapping[str, ScoreConfig]) -> list[tuple[str, str]]:
    """Times a few features of the first and the last layer; the cost is linear in between."""
    from steerlens.subject import load_subjects
    from steerlens.subject.sae import sae_sources

    layers = [source.layer for source in sae_sources(config)]
    ends = sorted({layer for layer in (layers[0], layers[-1]) if layer is not None})
    probe = dataclasses.replace(config, layer=ends or config.layer)
    timed, corpus, counts = {}, {}, {}
    for subject in load_subjects(probe):
        features = select_features(config.features, subject.layer, subject.d_sae, config.seed)
        timed[subject.layer] = _seconds_each(subject, features, config, methods)
        corpus[subject.layer] = _corpus_seconds(subject, config, methods)
        counts = {
            layer: len(select_features(config.features, layer, subject.d_sae, config.seed))
            for layer in (layers if ends else [subject.layer])
            if layer is not None
        }
    n_features = sum(counts.values())
    each = np.interp(list(counts), list(timed), list(timed.values()))
    passes = np.interp(list(counts), list(corpus), list(corpus.values()))
    seconds = float(np.dot(each, list(counts.values())) + passes.sum())
    return [
        ("layers", ", ".join(map(str, counts))),
        ("features", f"{n_features:,}"),
        (
            "forwards",
            f"{n_features * len(methods):,} rows of one position, "
            f"{len(counts) * len(methods)} of the whole prompt",
        ),
        ("time", f"about {duration(seconds)} of scoring"),
        ("disk", f"about {gigabytes(n_features * TABLE_BYTES + 1e6)} in the run's folder"),
    ]


def _seconds_each(
    subject: Any, features: list[int], config: RunConfig, methods: Mapping[str, ScoreConfig]
) -> float:
    """Seconds a feature, timed the second time: the first pays for what happens once."""
    from steerlens.scoring import score_layer

    methods = {name: one for name, one in methods.items() if not one.corpus_pass()}
    few = features[:CALIBRATION_FEATURES]
    run = ScoreRun(parse_memory(config.memory_budget), config.seed)
    seconds = 0.0
    for _ in range(2):
        subject.logit_lens_memo = None
        start = time.perf_counter()
        score_layer(subject, few, methods, config.logit_lens_k, run)
        seconds = time.perf_counter() - start
    return seconds / len(few)


def _corpus_seconds(subject: Any, config: RunConfig, methods: Mapping[str, ScoreConfig]) -> float:
    """Seconds of one layer's pass over the corpus, timed on its first tokens.

    An upper bound: layers whose SAEs fit in the memory budget together share a pass.
    """
    from steerlens.corpus_pass import read_corpus

    if not any(one.corpus_pass() for one in methods.values()):
        return 0.0
    corpus = dataclasses.replace(config.corpus, n_tokens=CALIBRATION_TOKENS)
    seconds, read = 0.0, 1
    for _ in range(2):
        start = time.perf_counter()
        run = ScoreRun(parse_memory(config.memory_budget), config.seed, corpus=corpus)
        read_corpus([subject], methods.values(), run)
        read = max(found.n_tokens for found in run.activations.values())
        seconds = time.perf_counter() - start
    return seconds / read * _corpus_tokens(config.corpus)


def _corpus_tokens(corpus: CorpusConfig) -> float:
    """How many tokens a run will read: at most what it asks for, at about 4 bytes each."""
    asked = math.inf if corpus.n_tokens is None else corpus.n_tokens
    if corpus.source in ("embedded", "hub"):
        return asked
    return min(asked, Path(str(corpus.path)).stat().st_size / 4)
