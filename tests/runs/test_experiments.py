"""Every experiment file composes, and its first steps run on a tiny subject of the same type.

Experiments that differ in nothing but their name are one run.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens.config.compose import compose
from steerlens.config.entries import conf_dir
from steerlens.config.parse import layer_numbers
from steerlens.config.registry import ScoreConfig
from steerlens.config.schema import (
    ConceptsConfig,
    CorpusConfig,
    CoverageConfig,
    JudgeConfig,
    ModelConfig,
    PmiConfig,
    RunConfig,
    TrackingConfig,
)
from steerlens.results import FEATURES, GENERATIONS, NULL_SCORES, STEERING
from steerlens.results.folder import ASIDE
from steerlens.runs.preflight import check
from steerlens.storage.files import read_json
from tests.support.axbench import save_concepts, save_instructions
from tests.support.frames import assert_identical

FOLDER = conf_dir() / "experiment"
EXPERIMENTS = sorted(
    file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.yaml")
)
WITHOUT_SUBJECT = ("paper/reference", "paper/table1_published")
"""Load no model; `test_reference` and `test_table1` run them on small files."""
AXBENCH = "paper/table1"
"""Its concepts belong to its subject."""
PAPER = [
    name
    for name in EXPERIMENTS
    if name.startswith("paper/") and name not in (*WITHOUT_SUBJECT, AXBENCH)
]
OTHERS = [name for name in EXPERIMENTS if name not in (*PAPER, *WITHOUT_SUBJECT)]

TYPES = {
    "smollm2": ("llama", "topk"),
    "gemma-2-2b": ("gemma2", "jumprelu"),
    "gemma-2-9b": ("gemma2", "jumprelu"),
    "gemma-2-9b-it": ("gemma2", "jumprelu"),
    "llama-3.1-8b": ("llama", "jumprelu"),
    "pythia-70m": ("neox", "standard"),
    "gpt2-small": ("gpt2", "standard"),
    "qwen3-1.7b": ("qwen3", "topk"),
    "qwen3-8b": ("qwen3", "topk"),
    "qwen3-30b-a3b": ("qwen3_moe", "topk"),
    "qwen2.5-7b-instruct": ("qwen2", "jumprelu"),
    "gpt-oss-20b": ("gpt_oss", "jumprelu"),
    "llama-3.1-8b-instruct": ("llama", "jumprelu"),
    "llama-3.3-70b-instruct": ("llama", "standard"),
    **{
        f"gemma-3-{size}{tuned}": ("gemma3", "jumprelu")
        for size in ("270m", "1b", "4b", "12b", "27b")
        for tuned in ("", "-it")
    },
}
"""Of every subject, the types of its model and its SAE, as `tests.support.tiny` has them."""
SUBJECTS = {"smollm2-135m-instruct": "smollm2", **{name: name for name in TYPES}}
"""The subjects by the names of their models, as far as experiments choose them."""

ONE_OF_EACH = list({types: subject for subject, types in TYPES.items()}.values())
"""A subject for every pair of types."""

OF_THE_PAPER = ["smollm2", "gemma-2-2b", "gemma-2-9b", "llama-3.1-8b", "pythia-70m"]
"""And the default."""


def once(names: list[str]) -> list[Any]:
    """The first of `names`, and the others where there is time."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


ALIKE = {
    "table1_embedded": "table1_smollm2",
    "paper/table1": "table1_smollm2",
    "one_release": "compare_releases",
    "sae_training": "compare_releases",
    "optuna": "paper/steering",
}
"""Experiments whose first steps are nearly those of another."""


FIGURES = {
    "paper/figure_2": "input_and_output_feature",
    "paper/figure_3": "input_output_by_layer",
    "paper/figure_4": "success_by_threshold",
    "paper/figure_5": "success_by_threshold",
    "paper/figure_6": "input_against_output",
    "paper/figure_7": "hybrid_features",
    "paper/figure_8": "pmi_by_role",
    "paper/figure_9": "input_output_by_layer",
    "paper/figure_10": "success_by_threshold",
    "demo": "input_output_by_layer",
    "filter": "success_by_criterion",
    "gemma_2_2b": "output_score_distribution",  # by layer, too, where it has several
    "controls": "controls",
    "one_release": "releases_by_layer",
    "compare_releases": "releases_by_layer",
    "sae_training": "releases_by_layer",
    "model_types": "releases_by_layer",
    "criteria": "criteria_agreement",
    "factors": "factors",
    "capability": "capability",
    "lenses": "lenses",
    "lenses_words": "lenses",
    "criteria_words": "criteria_agreement",
    "dataset_size": "sizes",
    "dataset_size_texts": "sizes",
    "table1_embedded": "table1_factor",
    "table1_smollm2": "table1_factor",
    "paper/table1": "table1_threshold",
}
"""The figure that an experiment is for."""

REPORTED = {
    "paper/table_2": "### Input features",
    "paper/table_3": "### Output features",
    "paper/table_4": "### Hybrid features",
    "paper/table_5": "| success token | first logit-lens token |",
    "paper/appendix_d": "prompts S_out correlates with its mean over them",
    "concept": "## Toward w60",
    "together": "## Toward w60",
    "compare_releases": "## Words",
    "optuna": "## Steering",
}
"""What the report of an experiment without a figure of its own must have."""

CONCEPT = {"concept": "w60", "together": "w60"}
"""What those steer toward that need to be told."""

LAYERS = (1, 3)

Folders = Callable[[str], tuple[Path, Path]]


def composed(name: str, *overrides: str) -> RunConfig:
    concept = [f"concept={CONCEPT[name]}"] if name in CONCEPT else []
    # The tiny SAEs that take the place of the default's have no examples.
    return compose([f"experiment={name}", "sae.examples=null", *concept, *overrides])


def test_the_experiments_are_found() -> None:
    numbered = [f"paper/figure_{n}" for n in range(2, 11)] + [
        f"paper/table_{n}" for n in (2, 3, 4, 5)
    ]
    assert {*numbered, "paper/appendix_d", "demo", "filter"} <= set(EXPERIMENTS)
    assert {*FIGURES, *REPORTED, *WITHOUT_SUBJECT, *ALIKE, *ALIKE.values()} <= set(EXPERIMENTS)


def test_every_subject_has_a_tiny_one_of_its_type() -> None:
    assert set(TYPES) == {file.stem for file in (conf_dir() / "subject").glob("*.yaml")}


def test_the_index_has_every_figure_and_table_and_the_costs_that_follow_from_the_shapes() -> None:
    from experiments.paper import cost

    index = Path(cost.__file__).with_name("README.md").read_text(encoding="utf-8")
    for name in {*FIGURES, *REPORTED}.intersection(PAPER):
        assert f"experiment={name} " in index
    assert cost.table() in index


def test_a_figure_of_the_late_layers_has_those_of_the_paper() -> None:
    from steerlens.config.parse import parse_layers

    def first(subject: str) -> int:
        config = composed("paper/figure_5", f"subject={subject}")
        assert config.model.n_layers is not None
        return parse_layers(config.layer, config.model.n_layers, config.model.late_from)[0]

    assert (first("gemma-2-2b"), first("gemma-2-9b")) == (16, 24)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in which every token of the tiny models is common."""
    draw = random.Random(0)
    lines = [" ".join(f"w{draw.randrange(12, 211)}" for _ in range(12)) for _ in range(400)]
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folders of a tiny model and its SAEs, of the types of a subject."""
    from tests.support.tiny import make_decided, save_model, save_sae

    root = tmp_path_factory.mktemp("subjects")

    def find(subject: str) -> tuple[Path, Path]:
        kind, architecture = TYPES[subject]
        model, folder = root / kind, root / architecture
        if not model.exists():
            make_decided(save_model(model, kind))
        if not folder.exists():
            for layer in LAYERS:
                save_sae(folder / f"layer_{layer}", architecture, layer=layer, seed=layer)
        return model, folder

    return find


@pytest.fixture(scope="module")
def finished(
    undrawn_figures: None,
    compared_once: None,
    folders: Folders,
    text: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[RunConfig, str], Path]:
    """The folder of an experiment's first steps on a tiny subject, made when first asked for."""
    from steerlens.runs.run import run

    root = tmp_path_factory.mktemp("runs")
    made: dict[str, Path] = {}

    def folder(config: RunConfig, subject: str) -> Path:
        tiny = first_steps(config, *folders(subject), text)
        tiny.paths.cache_dir = str(root / "cache")
        settings = dataclasses.asdict(tiny).items()
        key = json.dumps({name: value for name, value in settings if name not in ASIDE})
        if key not in made:
            made[key] = root / str(len(made))
            tiny.paths.output_dir = str(made[key])
            check(tiny)
            run(tiny)
        return made[key]

    return folder


def first_steps(config: RunConfig, model: Path, saes: Path, text: Path) -> RunConfig:
    """The same experiment, so small that it takes seconds, on the model and SAEs of two folders."""
    features, steer = config.features, config.steer
    # Of the tiny TopK SAEs a few features fire hardly ever.
    several = 20 if features.min_examples else 40
    return dataclasses.replace(
        config,
        name="tiny",
        model=_tiny_model(config.model, model),
        evaluator=config.evaluator and _tiny_model(config.evaluator, model),
        sae=dataclasses.replace(
            config.sae, release=None, sae_id=None, path=str(saes), layers=None, d_sae=None
        ),
        layer=config.layer if layer_numbers(config.layer) is None else LAYERS[-1],
        features=dataclasses.replace(
            features,
            n=several if (features.n or 1) > 1 else features.n,
            per_word=features.per_word and several,
        ),
        score=_few_prompts(config.score),
        steer=dataclasses.replace(steer, factors=steer.factors and [0.4, 20.0]),
        generation=dataclasses.replace(
            config.generation, n_prompts=2, max_new_tokens=6, chat_template=False
        ),
        coverage=dataclasses.replace(
            config.coverage, words=config.coverage.words and ["w60", "w61", "music"]
        ),
        toward=dataclasses.replace(
            config.toward, words=config.toward.words and ["w60", "w61", "music"]
        ),
        corpus=CorpusConfig(name="text", source="text", path=str(text), context_length=16),
        evaluate=dataclasses.replace(config.evaluate, n_items=8 if config.evaluate.tasks else None),
        concepts=config.concepts and _tiny_concepts(config.concepts, text.parent),
        judge=config.judge and JudgeConfig("lexical"),
        pmi=PmiConfig(min_count=1, min_together=1),
        tracking=TrackingConfig(mode="disabled"),
        paths=dataclasses.replace(config.paths, output_dir="unused"),
        device="cpu",
    )


def _tiny_concepts(concepts: ConceptsConfig, folder: Path) -> ConceptsConfig:
    """Two concepts in AxBench's layout, and methods that have learnt little."""
    path, instructions = folder / "concepts", folder / "text.jsonl"
    if not path.exists():
        save_concepts(path, LAYERS[-1])
        save_instructions(instructions)
    quick = {"epochs": 1}
    settings: dict[str, Any] = dict.fromkeys(
        ("Probe", "SSV", "ReFT-r1", "RePS", "LoReFT", "LoRA"), quick
    )
    settings["SAE-TS"] = {"vectors": 4, "prompts": 1, "tokens": 2}
    return dataclasses.replace(
        concepts, source="folder", path=str(path), subset=None, n=None, n_prompts=4,
        settings=settings, instructions="genre", instructions_path=str(folder),
    )  # fmt: skip


def _tiny_model(entry: ModelConfig, folder: Path) -> ModelConfig:
    unknown = dict.fromkeys(("n_layers", "d_model", "d_vocab", "n_params", "late_from"))
    return dataclasses.replace(entry, path=str(folder), aliases=["tiny"], **unknown)


def _few_prompts(scores: Mapping[str, ScoreConfig]) -> dict[str, ScoreConfig]:
    """Give a single score of several prompts three of them, and a score of texts few of them."""
    few: Any = {"prompts": ["the", "Note that", "In my experience,"]}
    texts: Any = {**few, "samples": 12, "max_new_tokens": 6}
    labelled: Any = {"n_train": 4, "n_test": 2, "max_tokens": 8}
    if len(scores) > 1:
        several = {
            name: dataclasses.replace(score, **texts) if hasattr(score, "samples") else score
            for name, score in scores.items()
        }
        return {
            name: dataclasses.replace(score, **labelled) if hasattr(score, "n_train") else score
            for name, score in several.items()
        }
    return {
        name: dataclasses.replace(score, **few) if hasattr(score, "prompts") else score
        for name, score in scores.items()
    }


def check_published(config: RunConfig, text: Path) -> None:
    """Check `config` where its SAEs are published; its own corpus may not be on this machine."""
    if config.sae.release:
        check(dataclasses.replace(config, corpus=CorpusConfig("text", "text", str(text))))


def assert_shown(name: str, folder: Path) -> None:
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    if name in FIGURES:
        assert (folder / "figures" / f"{FIGURES[name]}.png").stat().st_size > 0
    if name in REPORTED:
        assert REPORTED[name] in (folder / "report.md").read_text()


@pytest.mark.parametrize("subject", once(OF_THE_PAPER))
@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_paper_shows_what_it_is_for(
    name: str, subject: str, text: Path, finished: Callable[[RunConfig, str], Path]
) -> None:
    config = composed(name, f"subject={subject}")
    check_published(config, text)
    assert_shown(name, finished(config, subject))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in OTHERS],
)
def test_any_other_experiment_shows_what_it_is_for(
    name: str, text: Path, finished: Callable[[RunConfig, str], Path]
) -> None:
    config = composed(name)
    config = dataclasses.replace(config, judge=config.judge and JudgeConfig("lexical"))  # no key
    if config.sae.release:
        check(config)
    assert_shown(name, finished(config, SUBJECTS[config.model.name]))


@pytest.mark.parametrize("subject", once(ONE_OF_EACH))
def test_model_types_are_compared_on_every_type(
    subject: str, finished: Callable[[RunConfig, str], Path]
) -> None:
    config = composed("model_types", f"subject={subject}")
    if config.sae.release:
        check(config)
    assert config.evaluator is None
    assert config.corpus.source == "embedded"
    assert_shown("model_types", finished(config, subject))


@pytest.mark.parametrize(
    "name",
    once(
        [
            *("criteria", "controls", "dataset_size", "dataset_size_texts", "compare_releases"),
            "factors",
        ]
    ),
)
def test_a_study_of_one_feature_is_told_without_a_claim(
    name: str, finished: Callable[[RunConfig, str], Path]
) -> None:
    config = composed(name, "features=random", "features.n=1", "layer=19")
    if config.steer.factors:
        few = dataclasses.replace(config.selection, top_n=1)
        config = dataclasses.replace(config, selection=few)
    config = dataclasses.replace(config, coverage=CoverageConfig())
    folder = finished(config, "smollm2")
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    sentences = " ".join(summary["study"]["sentences"])
    assert sentences
    assert "surely rises" not in sentences
    assert "gives most" not in sentences
    rows = [row for table in summary["study"]["tables"].values() for row in table]
    ends = [value for row in rows for key, value in row.items() if key.endswith("_low")]
    assert set(ends) <= {None}


@pytest.mark.slow
def test_the_criteria_in_shards_are_those_of_the_whole(
    folders: Folders, text: Path, undrawn_figures: None, compared_once: None, tmp_path: Path
) -> None:
    from steerlens.runs.run import run
    from steerlens.runs.sweep import join

    config = first_steps(composed("criteria"), *folders("smollm2"), text)
    assert config.steer.search
    assert config.choice.split
    config.features.n = 9  # which two shards share unequally
    config.steer.factors = [0.4, 1.0, 4.0, 8.0, 20.0]

    def finished(shard: str | None) -> Path:
        name = f"shard_{shard[0]}" if shard else "whole"
        paths = dataclasses.replace(
            config.paths, output_dir=str(tmp_path / name), cache_dir=str(tmp_path / f"{name}_cache")
        )
        part = dataclasses.replace(config, shard=shard, paths=paths)
        check(part)
        run(part)
        return tmp_path / name

    whole = finished(None)
    parts = [finished(shard) for shard in ("1/2", "0/2")]
    joined = join(parts, tmp_path / "joined", show=False).folder
    for table in (FEATURES, STEERING, NULL_SCORES):
        expected = table.read(whole)
        assert_identical(table.read(joined).loc[:, list(expected)], expected)
    texts = pd.concat([GENERATIONS.read(part) for part in parts])
    keys = list(GENERATIONS.keys)
    ordered = [
        rows.sort_values(keys, ignore_index=True) for rows in (texts, GENERATIONS.read(whole))
    ]
    assert_identical(*ordered)
    ours, expected = (read_json(folder / "summary.json")["study"] for folder in (joined, whole))
    assert ours == expected
    assert {"criteria", "criteria_payoff", "criteria_outcomes"} <= set(ours["tables"])
