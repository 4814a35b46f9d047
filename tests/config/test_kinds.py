"""Kinds of runs: what each reads, and that whatever it would ignore is refused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from steerlens.config.compose import compose, compose_jobs, to_config, usual_values
from steerlens.config.kinds import KINDS, kind_of, refuse_ignored
from steerlens.config.registry import ScoreConfig
from steerlens.config.schema import ConceptsConfig, JudgeConfig, ModelConfig, RunConfig
from steerlens.config.sources import source_note, unread_note
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check

OF_TEXTS = {"steer", "generation", "evaluator", "selection", "choice", "pmi", "coverage", "metrics"}
OF_TEXTS |= {"evaluate"}
OF_FEATURES = {"features", "labels", "selection", "choice", "pmi", "coverage", "quality"}
IGNORED = {
    "scores": {*OF_TEXTS, "toward", "judge", "concept"},
    "features": {"toward"},
    "concept": {"toward", "pmi"},
    "words": {"selection", "pmi", "concept", "evaluate"},
    "concepts": {
        *(*OF_FEATURES, "toward", "concept", "evaluate", "steer.search", "steer.controls"),
        *("steer.together", "steer.weights"),
        *("steer.default_max_activation", "generation.prompts", "generation.n_prompts"),
    },
    "published": {
        *(*OF_TEXTS, *OF_FEATURES, "toward", "judge", "concept", "concepts"),
        *("sae", "layer", "score", "corpus", "lens", "logit_lens_k", "shard"),
    },
}
"""By kind of run, the groups and single settings that it ignores."""

DECIDING = ("steer.factors", "toward.words", "features.concept", "concepts")
DECIDING += ("reference.alone", "reference.ratings")
"""Settings that make a run one of another kind."""


@pytest.fixture(scope="module")
def plain() -> RunConfig:
    return compose()


def of_kind(plain: RunConfig, kind: str) -> RunConfig:
    config = copy.deepcopy(plain)
    if kind in ("features", "concept", "words", "concepts"):
        config.steer.factors = [1.0]
        config.steer.unit = "max_activation"
    if kind in ("features", "concept", "words"):
        config.coverage.words = ["water"]
    if kind in ("features", "concept"):
        config.evaluate.tasks = ["sums"]
    if kind == "concept":
        config.features.concept = "water"
    elif kind == "words":
        config.toward.words = ["water"]
    elif kind == "concepts":
        config.concepts = ConceptsConfig("embedded", "embedded")
        config.judge = JudgeConfig("lexical")
    elif kind == "published":
        config.reference.alone = True
    if kind != "published":
        config.lens.name = "jacobian"
    assert kind_of(config).name == kind
    return config


def other_value(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, ScoreConfig | Mapping):
        return {"other": ScoreConfig("other")}
    return "other" if isinstance(value, str) else [7]


def changed_once(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """`config` with one setting changed, for every setting of the schema but those of its kind."""
    for field in dataclasses.fields(RunConfig):
        group = getattr(RunConfig(), field.name)
        settings = dataclasses.fields(group) if dataclasses.is_dataclass(group) else [None]
        for setting in settings:
            key = field.name if setting is None else f"{field.name}.{setting.name}"
            if key in DECIDING or field.name == "chosen":
                continue
            changed = copy.deepcopy(config)
            if key in ("evaluator", "judge"):
                setattr(changed, key, ModelConfig if key == "evaluator" else JudgeConfig)
                setattr(changed, key, getattr(changed, key)("other"))
            elif setting is None:
                setattr(changed, key, other_value(getattr(config, key)))
            else:
                part = getattr(changed, field.name)
                setattr(part, setting.name, other_value(getattr(part, setting.name)))
            yield key, changed


def test_the_table_above_has_every_kind() -> None:
    assert [kind.name for kind in KINDS] == [*IGNORED]


@pytest.mark.parametrize("kind", IGNORED)
def test_every_setting_is_read_or_refused(plain: RunConfig, kind: str) -> None:
    config = of_kind(plain, kind)
    of_no_word = {"features.examples"} | ({"features.top_k"} if kind != "words" else set())
    beside = of_no_word if kind in ("scores", "features", "words") else set()
    if kind in ("scores", "features", "concept"):
        beside |= {"features.per_word"}
    if kind in ("features", "concept", "words"):
        beside |= {"choice.perplexity_ratio", "choice.kl_budget", "choice.dose_budget"}
        beside |= {"judge"}  # of choice.rule=judge
    if kind != "published":
        beside |= {"lens.factor"}
    refused = {}
    for key, changed in changed_once(config):
        try:
            refuse_ignored(changed, lambda _: (plain, None))
        except SteerlensError as error:
            refused[key] = str(error)
    keys = [key for key, _ in changed_once(config)]
    ignored = {key for key in keys if IGNORED[kind] & {key, key.partition(".")[0]}}
    assert refused.keys() == ignored | beside
    assert {key for key in refused if kind_of(config).does in refused[key]} == ignored


@pytest.fixture(scope="module")
def table1() -> RunConfig:
    return compose(["experiment=table1_embedded"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("steer.search", True),
            ("steer.controls", ["random_direction"]),
            ("steer.together", [2]),
        ),
        *(("coverage.words", ["water"]), ("quality.n_tokens", 100), ("selection.threshold", 0.1)),
        *(("features.n", 100), ("features.min_examples", 3), ("choice.rule", "budget")),
        *(("choice.split", True), ("pmi.window", 5), ("concept", "water"), ("labels", "nowhere")),
    ],
)
def test_what_concepts_have_ignored_without_a_word_is_refused(
    table1: RunConfig, key: str, value: Any
) -> None:
    config = copy.deepcopy(table1)
    group, _, setting = key.rpartition(".")
    setattr(getattr(config, group) if group else config, setting, value)
    with pytest.raises(SteerlensError, match="this run compares methods on the concepts of a set"):
        refuse_ignored(config, lambda _: (table1, table1))


def test_a_judge_without_concepts_is_refused() -> None:
    with pytest.raises(SteerlensError, match="judge=lexical would be ignored"):
        check(compose(["judge=lexical"]))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["steer.operator=clamp"], "add steer=grid or other factors, or leave it out"),
        (["steer=axbench", "steer.factors=null"], "steer.unit=max_activation would be ignored"),
        (["features.top_k=3"], "is read only beside features.concept or toward.words"),
        (["steer=grid", "coverage.top_k=3"], "is read only beside coverage.words"),
        (["steer=grid", "model@evaluator=gpt2-small", "toward.n=1"], "these settings are for"),
        (["model@evaluator=gpt2-small"], "model@evaluator=gpt2-small would be ignored"),
        (["experiment=filter", "steer=none", "pmi.window=3"], "pmi.window=3 would be ignored"),
    ],
)
def test_a_refusal_says_what_to_do(overrides: list[str], expected: str) -> None:
    with pytest.raises(SteerlensError) as caught:
        check(compose(overrides))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["subject=gemma-2-2b"],  # whose evaluator is for runs that steer
        ["experiment=filter", "steer=none"],  # whose controls nobody has asked for by this
        ["steer.search=false", "pmi.window=20"],  # as the schema has them
        ["experiment=paper/scores", "score=concept", "concept=water"],  # `score.concept` is it
    ],
)
def test_what_nobody_has_asked_for_is_not_refused(overrides: list[str]) -> None:
    config = compose(overrides)
    refuse_ignored(config, usual_values)


def test_the_file_of_an_experiment_of_ones_own_is_read_as_the_command_line_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - /experiment/table1_embedded\npmi: {window: 5}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    with pytest.raises(SteerlensError, match=r"pmi\.window=5 would be ignored"):
        check(compose(words))


def test_of_a_sweep_only_the_jobs_that_would_ignore_something_are_refused() -> None:
    refused = []
    for tree in compose_jobs(["steer=none,grid", "steer.operator=clamp"], multirun=True):
        try:
            check(to_config(tree))
        except SteerlensError as error:
            refused.append(str(error))
    assert len(refused) == 1
    assert "steer.operator=clamp would be ignored" in refused[0]


def test_a_corpus_in_the_place_of_what_ships_is_told() -> None:
    given = compose(["score=both", "corpus.n_tokens=5000"])
    assert str(source_note(given)).startswith("corpus=embedded is read for input, in the place of")
    assert source_note(compose(["score=both"])) is None
    given.score.pop("input")
    assert source_note(given) is None


def test_a_corpus_that_nothing_reads_is_told() -> None:
    for words, told in (
        (["corpus=webtext"], "corpus=webtext: nothing in this run reads a corpus."),
        (["corpus.n_tokens=500"], "corpus=embedded: nothing in this run reads a corpus."),
        (["score=both", "corpus=webtext"], None),
        (["subject=gemma-2-2b", "features=random"], None),
        ([], None),
    ):
        assert unread_note(compose(words), usual_values) == told
