"""What a run would do and how long it would take: from what was measured before, or measured now.

Nothing here imports torch, unless it is asked to measure or a concept's tokens are looked up.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from rich.text import Text

from steerlens.config.catalog import read_release, releases
from steerlens.config.folders import has_chat_template, sae_facts, sae_folders
from steerlens.config.gguf import gguf_file
from steerlens.config.kinds import CONCEPTS
from steerlens.config.registry import BLOCK
from steerlens.config.saes import layers_with_sae
from steerlens.config.schema import JUDGE, CorpusConfig, ModelConfig
from steerlens.config.settings import Settings, SubjectSettings
from steerlens.data.corpus.webtext import webtext
from steerlens.engine.examples import read_metadata
from steerlens.errors import SteerlensError
from steerlens.report.concept_page import Line, print_hanging
from steerlens.report.terminal import console_on, duration
from steerlens.results.text import visible
from steerlens.runs.memory_check import (
    device_type,
    dtype_name,
    estimate_weights,
    gigabytes,
    refuse_absent_device,
    refuse_if_too_big,
)
from steerlens.runs.plan.concepts import planned_concepts, planned_ratings
from steerlens.runs.plan.finished import Finished
from steerlens.runs.plan.measure import Measured, measure
from steerlens.runs.plan.price import n_edited_rows, n_prompts_of, price, price_rows
from steerlens.runs.plan.rates import CorpusPass, Rates, keep_rates, read_rates
from steerlens.runs.plan.steering import planned_texts, planned_words
from steerlens.runs.subject_check import local_folder
from steerlens.scores.selection import part, select_features

MEASURE = "plan=measure"
NOT_MEASURED = f"not measured yet; {MEASURE} times a few"
TABLE_BYTES = 1000
"""Of one feature in features.parquet and W&B's table, generously."""
TEXT_BYTES = 200
"""Of one text in generations.parquet."""


def print_plan(settings: Settings, measures: bool = False) -> None:
    """Print what a run would do and need; with `measures`, timed on a few of its features."""
    methods, subject = settings.scores, settings.subject
    weights = estimate_weights(settings)
    rows = [
        ("model", f"{subject.model.title} ({subject.model.path})"),
        ("SAE", subject.sae.title),
        ("scores", ", ".join(methods)),
        *_texts_of(settings),
        *_lens_of(settings),
        ("device", f"{device_type(subject)}, {dtype_name(subject)}"),
        (
            "memory",
            f"{gigabytes(weights) if weights else 'unknown'} of weights, and up to "
            f"{gigabytes(subject.memory_budget)} beyond (memory_budget)",
        ),
    ]
    if not weights_are_here(subject):
        rows += _guessed(settings, weights)
    else:
        measured = None
        if measures:
            measured = measure(settings)
            keep_rates(settings, measured.rates)
        plan = _toward_concepts if settings.kind is CONCEPTS else _scores_and_texts
        rows += plan(settings, measured)
    rows += [("warning", line) for line in settings.warnings]
    width = max(len(name) for name, _ in rows)
    print(f"This would run (plan={'measure' if measures else 'true'} stops here):")
    lines = (Line(f"  {name:<{width}}  ", Text(visible(text))) for name, text in rows)
    print_hanging(console_on(sys.stdout), lines)


def _texts_of(settings: Settings) -> list[tuple[str, str]]:
    """Return the texts that scores read, if any does: what features fire on, and sampled ones."""
    rows, methods, corpus = [], settings.scores, settings.corpus
    files = {file for method in methods.values() for file in method.examples()}
    for file in sorted(files):
        n_tokens = max(layer["n_tokens"] for layer in read_metadata(file)["saes"].values())
        rows.append(("examples", f"those of {file.name}, which ships, from {n_tokens:,} tokens"))
    if settings.counts_need_a_pass or any(method.corpus_pass() for method in methods.values()):
        text = corpus.path or corpus.name
        rows.append(("corpus", f"a pass of our own over corpus={corpus.name} ({text})"))
    for name, score in methods.items():
        if n_texts := getattr(score, "n_sampled", int)():
            sampled = f"{n_texts:,} sampled without steering for {name}"
            rows.append(("texts", f"{sampled}; score.run=DIR reads a run's instead"))
    return rows


def _lens_of(settings: Settings) -> list[tuple[str, str]]:
    """Return what the run's lens takes, unless it is the logit lens, which takes no forward."""
    lens = settings.lens
    if lens.name == "logit":
        return []
    if lens.name == "effect":
        prompts = f"{lens.n_prompts} neutral prompts"
        return [("lens", f"effect, every feature amplified after {prompts}")]
    if lens.path and lens.path == settings.subject.sae.jacobians:
        return [("lens", f"jacobian, read from {Path(lens.path).name}, which ships")]
    if lens.path:
        return [("lens", f"jacobian, read from {lens.path}")]
    return [
        (
            "lens",
            f"jacobian, computed once for all layers from {lens.n_prompts} sequences of "
            f"{lens.context_length} tokens of corpus={settings.corpus.name}",
        )
    ]


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


def _guessed(settings: Settings, weights: int | None) -> list[tuple[str, str]]:
    """Return what can be told before the weights are here, and what is in the way of a run."""
    subject = settings.subject
    sizes = {} if settings.kind is CONCEPTS else _sizes(subject)
    rows = [("layers", ", ".join(map(str, sizes)) or _layers_told(subject))]
    parts = None
    if sizes:
        n_features = sum(len(_features(settings, *layer)) for layer in sizes.items())
        rows.append(("features", f"{n_features:,}"))
        steering = planned_texts(settings, n_features)
        if steering:
            rows.append(
                (
                    "steering",
                    f"up to {steering.texts:,} texts of {steering.features:,} features",
                )
            )
        parts = price(settings, n_features, len(sizes), steering.texts if steering else 0)
    if parts:
        rows += price_rows(parts)
    else:
        rows.append(("time", "unknown until the weights are here, because it is measured on them"))
    size = gigabytes(weights) if weights else "unknown size"
    return [*rows, ("disk", f"a download of {size} first"), *_in_the_way(settings)]


def _in_the_way(settings: Settings) -> list[tuple[str, str]]:
    """Return why this machine can't carry out the run as it is."""
    checks: list[Callable[[], object]] = [
        partial(refuse_absent_device, settings.subject),
        partial(refuse_if_too_big, settings),
    ]
    if settings.reads_corpus and settings.corpus.source == "webtext":
        checks.append(webtext)
    rows = []
    for refuse in checks:
        try:
            refuse()
        except SteerlensError as error:
            rows.append(("not here", str(error)))
    return rows


def _layers_told(subject: SubjectSettings) -> str:
    """Tell the layers as they were asked for."""
    layers = subject.layers
    return layers if isinstance(layers, str) else ", ".join(map(str, layers))


def _sizes(subject: SubjectSettings) -> dict[int, int]:
    """Give the number of features of each layer's SAE; {} where only the weights tell."""
    layers, sae = layers_with_sae(subject) or [], subject.sae
    sizes: dict[int | None, int | None] = dict.fromkeys(layers, sae.d_sae)
    if sae.path:
        facts = [sae_facts(folder) for folder in sae_folders(Path(sae.path))]
        sizes = {of_sae.layer: of_sae.d_sae for of_sae in facts}
    size_of = {layer: size for layer in layers if (size := sizes.get(layer)) is not None}
    return size_of if len(size_of) == len(layers) else {}


def _chat_template(settings: Settings) -> bool | None:
    """Whether texts are answers inside a chat template; None where only the tokenizer tells."""
    generation = settings.steering.generation
    has_template = has_chat_template(settings.subject.model)
    if generation.chat_template == "auto":
        return has_template
    return bool(generation.chat_template)


def _toward_concepts(settings: Settings, measured: Measured | None) -> list[tuple[str, str]]:
    """Count the texts of concepts and what rating them takes."""
    layers = list(measured.sizes) if measured else layers_with_sae(settings.subject) or []
    if not layers:
        return [("layers", f"{_layers_told(settings.subject)}; how many, {MEASURE} tells")]
    planned = planned_concepts(settings, layers[0], len(layers))
    rates = measured.rates if measured else read_rates(settings)
    return [
        ("layers", ", ".join(map(str, layers))),
        ("concepts", f"{planned.concepts:,}, each in {planned.arms} ways"),
        ("steering", f"{planned.texts:,} texts, {_about(planned.texts, rates)}"),
        ("ratings", planned.rating),
        *(
            [
                (
                    "time",
                    f"besides, minutes for what each of {', '.join(planned.slow_methods)} learns",
                )
            ]
            if planned.slow_methods
            else []
        ),
        ("disk", f"about {gigabytes(planned.texts * TEXT_BYTES + 1e6)} in the run's folder"),
    ]


def _about(n_texts: int, rates: Rates | None) -> str:
    """Say how long texts take, in a few words."""
    if rates is None or rates.text is None:
        return f"how long they take is {NOT_MEASURED}"
    return f"about {duration(n_texts * rates.text)}"


def _features(settings: Settings, layer: int, d_sae: int) -> list[int]:
    # Which features fire often enough, only the pass tells: at most all of them.
    chosen = dataclasses.replace(settings.features, min_examples=None)
    ids = select_features(chosen, layer, d_sae, settings.seed)
    if chosen.per_word is not None:  # which may stand for a word, only the lens tells
        ids = ids[: chosen.per_word * len(settings.toward_words)]
    return part(ids, settings.shard)


def _scores_and_texts(settings: Settings, measured: Measured | None) -> list[tuple[str, str]]:
    """Count features, forwards and texts, those in the cache apart, and say how long they take."""
    sizes = measured.sizes if measured else _sizes(settings.subject)
    if not sizes:
        return [
            ("layers", _layers_told(settings.subject)),
            ("features", f"as many as the SAE's weights have, which {MEASURE} loads"),
            ("time", NOT_MEASURED),
        ]
    finished = Finished(settings, dtype_name(settings.subject))
    ids = {layer: _features(settings, layer, d_sae) for layer, d_sae in sizes.items()}
    counts = {layer: len(of_layer) for layer, of_layer in ids.items()}
    features_row = f"{sum(counts.values()):,}"
    if settings.features.per_word is not None:
        features_row += " at most: some words have fewer"
    if settings.features_concept:
        candidates = (measured and measured.candidates) or {
            layer: finished.candidates(layer, d_sae) for layer, d_sae in sizes.items()
        }
        if None in candidates.values():
            features_row += f" at most: how many may stand for the concept, {MEASURE} counts"
        else:
            counts = {layer: int(n or 0) for layer, n in candidates.items()}
            features_row = f"{sum(counts.values()):,} candidates of {features_row}"
    n_features, n_methods = sum(counts.values()), len(settings.scores)
    scores = settings.scores.values()
    n_rows = sum(n_edited_rows(score, n_features, len(counts)) for score in scores)
    n_cached = {layer: finished.scores(layer, of_layer) for layer, of_layer in ids.items()}
    rates = measured.rates if measured else read_rates(settings)
    rows = [
        ("layers", ", ".join(map(str, counts))),
        ("features", features_row),
        (
            "forwards",
            f"{n_rows:,} rows of one position, "
            f"{len(counts) * sum(map(n_prompts_of, scores)):,} of whole prompts",
        ),
        ("finished", f"{sum(n_cached.values()):,} scores are in the cache"),
        ("time", NOT_MEASURED),
    ]
    if rates and rates.feature:
        # What is kept isn't computed again; without features to score, nothing is.
        missing = {
            layer: max(0.0, n - n_cached[layer] / max(1, n_methods)) for layer, n in counts.items()
        }
        seconds = _scoring_seconds(missing, rates, _corpus_tokens(settings.corpus))
        rows[-1] = ("time", f"about {duration(seconds)} of scoring")
    n_bytes = n_features * TABLE_BYTES + 1e6
    if steering := planned_texts(settings, n_features):
        n_bytes += steering.texts * TEXT_BYTES
        n_kept = _texts_kept(settings, finished, list(counts))
        rows.append(
            (
                "steering",
                f"up to {steering.texts:,} texts of {steering.features:,} "
                f"{'candidates' if settings.features_concept else 'features'}, "
                f"{_about(max(0, steering.texts - n_kept), rates)}"
                + (f"; {n_kept:,} texts with these settings are in the cache" if n_kept else ""),
            )
        )
    if steering and settings.steering.choice.rule == JUDGE:
        concept = settings.steering.concept_label or settings.toward_words[0]
        prompt = settings.steering.prompts[0] if _chat_template(settings) else None
        rows.append(("ratings", planned_ratings(settings, concept, prompt, steering.texts)))
    if steering and settings.evaluate.tasks:
        tasks = ", ".join(settings.evaluate.tasks)
        rows.append(("tasks", f"{tasks}: up to {steering.edits:,} times each, and once unsteered"))
    if steering and (words := planned_words(settings, len(counts))):
        n_bytes += words.words * len(counts) * TABLE_BYTES
        rows.append(
            (
                "words",
                f"up to {words.texts:,} texts for {words.words:,} words in each layer, "
                f"{_about(words.texts, rates)}",
            )
        )
    return [*rows, ("disk", f"about {gigabytes(n_bytes)} in the run's folder")]


def _texts_kept(settings: Settings, finished: Finished, layers: list[int]) -> int:
    in_template = _chat_template(settings)
    if in_template is None:
        return 0
    generation = settings.steering.generation
    how = dataclasses.asdict(dataclasses.replace(generation, chat_template=in_template))
    return sum(finished.texts(layer, how) for layer in layers)


def _scoring_seconds(missing: Mapping[int, float], rates: Rates, n_tokens: float) -> float:
    """Seconds of scoring `missing` features of each layer, from the rates of some layers."""
    layers = [layer for layer, n in missing.items() if n > 0]
    if not layers:
        return 0.0
    each, block, null = (
        np.interp(layers, list(rate), list(rate.values()))
        for rate in (rates.feature, rates.block, rates.null)
    )
    n_features = np.array([missing[layer] for layer in layers])
    seconds = each @ n_features + block @ np.ceil(n_features / BLOCK) + null.sum() + rates.once
    if rates.passes:
        seconds += _corpus_seconds(layers, rates.passes, n_tokens)
    return float(seconds)


def _corpus_seconds(layers: list[int], passes: Mapping[int, CorpusPass], n_tokens: float) -> float:
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
