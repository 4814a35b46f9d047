"""One run: load each subject, score its features, keep and show what came out."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from steerlens import tracking
from steerlens.config.parse import parse_memory, parse_scores
from steerlens.config.schema import RunConfig
from steerlens.figures import FIGURES_FOLDER
from steerlens.files import write_json, write_text
from steerlens.fit import refuse_if_too_big
from steerlens.neuronpedia import label_columns, read_labels
from steerlens.plan import print_plan
from steerlens.provenance import PROVENANCE_FILE, provenance
from steerlens.registry import ScoreConfig
from steerlens.report import REPORT_FILE, write_report
from steerlens.results import FEATURES, SUMMARY_FILE
from steerlens.scores import ScoreRun
from steerlens.selection import select_features
from steerlens.status import Status
from steerlens.store import Store
from steerlens.terminal import print_summary, progress

if TYPE_CHECKING:
    from steerlens.subject import Subject

CONFIG_FILE = "config.yaml"


def run(config: RunConfig) -> None:
    """Scores what `config` asks for; everything it finds lies in `paths.output_dir` afterwards.

    Raises:
        SteerlensError: bad input, in one sentence; `status.json` then says `failed` and why.
    """
    folder = Path(config.paths.output_dir)
    if config.plan:
        refuse_if_too_big(config)
        print_plan(config)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # Hydra has made it; a plan leaves nothing behind
        return
    with Status(folder):
        refuse_if_too_big(config)
        _clear(folder)
        settings = dataclasses.asdict(config)
        write_text(folder / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))
        tracker = tracking.start(config.tracking, folder, settings)
        try:
            frame = _score(config, folder)
            summary, figures = write_report(frame, folder)
            tracker.log_features(frame)
            tracker.log_figures(figures)
        except BaseException:
            tracker.finish({}, failed=True)
            raise
        tracker.finish(summary)
        print_summary(frame, folder)


def _clear(folder: Path) -> None:
    """Removes what an earlier run left in the folder: it would pass for this run's."""
    for name in (FEATURES.file, SUMMARY_FILE, REPORT_FILE, PROVENANCE_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / FIGURES_FOLDER, ignore_errors=True)


def _score(config: RunConfig, folder: Path) -> pd.DataFrame:
    """The table of all layers; each finished layer is written at once."""
    from steerlens.corpus_pass import in_groups
    from steerlens.subject import load_subjects

    methods = parse_scores(config.score)
    budget = parse_memory(config.memory_budget)
    frames: list[pd.DataFrame] = []
    facts: dict[str, Any] = {"model": None, "saes": {}, "corpus": None, "seconds": {}}
    for group in in_groups(load_subjects(config), methods.values(), budget):
        for frame, fact in _score_group(group, methods, config):
            frames.append(frame)
            facts |= {name: fact[name] for name in ("model", "corpus")}
            for name in ("saes", "seconds"):
                facts[name] |= fact[name]
            FEATURES.write(pd.concat(frames, ignore_index=True), folder)
            write_json(folder / PROVENANCE_FILE, provenance(facts, sys.argv, config.seed))
    return pd.concat(frames, ignore_index=True)


def _score_group(
    group: Sequence[Subject], methods: Mapping[str, ScoreConfig], config: RunConfig
) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """For each subject of a group that reads the corpus together, its table and its facts."""
    from steerlens.corpus_pass import read_corpus
    from steerlens.scoring import score_layer

    names = (config.model.name, config.model.path, *config.model.aliases)
    labels = read_labels(Path(config.labels), names) if config.labels else {}
    group_run = ScoreRun(
        memory_budget=parse_memory(config.memory_budget),
        seed=config.seed,
        task=progress,
        corpus=config.corpus,
        store=Store(Path(config.paths.cache_dir) / "scores"),
    )
    read_corpus(group, methods.values(), group_run)
    for subject in group:
        features = select_features(config.features, subject.layer, subject.d_sae, config.seed)
        start = time.perf_counter()
        with progress(len(features) * len(methods), f"layer {subject.layer}") as advance:
            run = dataclasses.replace(group_run, progress=advance)
            columns = score_layer(subject, features, methods, config.logit_lens_k, run)
        columns |= label_columns(labels, subject.layer, features)
        facts = {
            "model": subject.lm.identity,
            "saes": {subject.layer: subject.identity},
            "corpus": _corpus_facts(group_run),
            "seconds": {subject.layer: round(time.perf_counter() - start, 3)},
        }
        yield FEATURES.frame(columns), facts


def _corpus_facts(run: ScoreRun) -> dict[str, Any] | None:
    """What provenance says of the corpus, if a method has read it."""
    read = [found.n_tokens for found in run.activations.values()]
    return {**(run.corpus_key() or {}), "tokens_read": max(read)} if read else None
