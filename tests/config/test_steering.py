"""Values of `steer`, `generation`, `selection` and `choice`: what they mean, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from steerlens.config.compose import compose
from steerlens.config.parse import parse_words
from steerlens.config.prompts import PROMPTS
from steerlens.config.schema import GenerationConfig, SelectionConfig
from steerlens.config.steering import (
    check_generation,
    check_selection,
    parse_factors,
    parse_prompts,
    parse_stop,
)
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check


@pytest.mark.parametrize(
    ("value", "factors"),
    [
        (None, []),
        (2, [2.0]),
        ([8, 0.5, 2], [0.5, 2.0, 8.0]),
        ([0, 0.5, 0.0, -0.0], [0.5]),
        ([2, 2.0, -1, 2], [-1.0, 2.0]),
        ((1, 2), [1.0, 2.0]),
    ],
)
def test_factors_rise_without_0_and_each_once(value: Any, factors: list[float]) -> None:
    assert parse_factors(value) == factors


@pytest.mark.parametrize("value", ["x", ["x"], ["2"], [math.nan], [math.inf], [True], [[1]], {}])
def test_what_is_no_factor_is_refused(value: Any) -> None:
    with pytest.raises(SteerlensError, match=r"is not a number; write 'steer\.factors="):
        parse_factors(value)
    with pytest.raises(SteerlensError, match="names no factor"):
        parse_factors([])


@pytest.mark.parametrize("value", [0, [0], [0.0, -0.0]])
def test_0_alone_is_refused_because_every_run_has_it(value: Any) -> None:
    with pytest.raises(SteerlensError, match=r"steer\.factors=\[0\] steers with nothing"):
        parse_factors(value)


def test_the_earlier_name_of_a_unit_is_that_of_today() -> None:
    config = compose(["steer=grid", "steer.unit=one"])
    assert config.steer.unit == "raw"
    check(config)


def test_prompts_are_a_text_or_a_list_of_texts_each_once() -> None:
    def parse(prompts: Any, n_prompts: int | None = None) -> list[str]:
        return parse_prompts(GenerationConfig(prompts=prompts, n_prompts=n_prompts))

    assert parse("Note that") == ["Note that"]
    assert parse(["b", "a", "b"]) == ["b", "a"]
    assert parse(["b", "b", "a", "c"], n_prompts=2) == ["b", "a"]
    assert parse(["a"], n_prompts=5) == ["a"]
    assert parse(["a ", "a"]) == ["a ", "a"]  # tokenised differently
    assert parse(None) == list(PROMPTS)
    assert parse(None, n_prompts=3) == list(PROMPTS[:3])
    assert len(set(PROMPTS)) == len(PROMPTS) == 50


def test_words_are_a_list_or_the_lines_of_a_file(tmp_path: Path) -> None:
    assert parse_words(None) == []
    assert parse_words(["date", " machine learning "]) == ["date", "machine learning"]
    file = tmp_path / "words.txt"
    file.write_text("\ufeffdate\r\n\n  C++ \n3\n", encoding="utf-8")
    assert parse_words(str(file)) == ["date", "C++", "3"]
    file.write_text("date\nnetwork\ndate\n")
    with pytest.raises(SteerlensError, match=r"words\.txt: date is there twice"):
        parse_words(str(file))
    file.write_text("\n \n")
    with pytest.raises(SteerlensError, match=r"words\.txt has no word"):
        parse_words(str(file))
    file.write_bytes(b"date \xff\xfa")
    with pytest.raises(SteerlensError, match="not a text file"):
        parse_words(str(file))


def test_stop_is_nothing_a_string_or_several() -> None:
    assert parse_stop(None) == []
    assert parse_stop(".") == ["."]
    assert parse_stop([".", "\n"]) == [".", "\n"]
    assert parse_stop([]) == []
    assert parse_stop(" ") == [" "]


GROUPS = ("model=gpt2-small", "sae=gpt2-small-res-jb")


def refusal(*words: str) -> str:
    with pytest.raises(SteerlensError) as caught:
        check(compose([*GROUPS, *words]))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["steer.factors=[a,2]"], ["steer.factors: 'a' is not a number", "[0.5,2,8]"]),
        (["steer.factors=[nan]"], ["nan is not a number"]),
        (["steer.factors=[inf]"], ["inf is not a number"]),
        (["steer.factors=[true]"], ["True is not a number"]),
        (["steer.factors=[]"], ["names no factor"]),
        (["steer.operator=clmp"], ["steer.operator 'clmp'", "'clamp'"]),
        (["steer.operator=x"], ["steer.operator 'x'", "add, clamp"]),
        (["steer.unit=amax"], ["steer.unit 'amax'", "'a_max'"]),
        (["steer.positions=lst"], ["steer.positions 'lst'", "'last'"]),
        (["steer.together=[1,2]"], ["steer.together: 1 features together", "at least 2"]),
        (["steer.together=[x]"], ["steer.together"]),
        (["choice.success=succes_20"], ["choice.success 'succes_20'", "'success_20'"]),
        (["choice.success=concept_success"], ["needs concept=WORD"]),
        (["steer.controls=[random]"], ["steer.controls 'random'", "random_feature"]),
        (["steer.controls=[random_featur]"], ["'random_featur'", "'random_feature'"]),
        (["steer.default_max_activation=0"], ["default_max_activation=0.0 must be positive"]),
        (["steer.default_max_activation=nan"], ["default_max_activation=nan must be positive"]),
        (["steer.factor=2"], ["factor", "factors"]),
        (["generation.stop="], ["generation.stop: ''"]),
        (['generation.stop=""'], ["generation.stop: ''", "null for none"]),
        (['generation.stop=[".",""]'], ["generation.stop: ''"]),
        (["generation.stop=3"], ["generation.stop: 3"]),
        (['generation.prompts=""'], ["generation.prompts: ''", "generation.prompts=["]),
        (['generation.prompts=["a"," "]'], ["generation.prompts: ' '"]),
        (["generation.prompts=[]"], ["is no list of texts"]),
        (["generation.prompts=[1]"], ["generation.prompts: 1 is no text"]),
        (["generation.prompts=3"], ["generation.prompts=3 is no list of texts"]),
        (["generation.n_prompts=0"], ["n_prompts=0 must be at least 1"]),
        (["generation.samples=0"], ["samples=0 must be at least 1"]),
        (["generation.max_new_tokens=0"], ["max_new_tokens=0 must be at least 1"]),
        (["generation.batch_size=0"], ["batch_size=0 must be at least 1"]),
        (["generation.top_k=0"], ["top_k=0 must be at least 1"]),
        (["generation.temperature=-1"], ["temperature=-1.0 must be 0 (greedy) or more"]),
        (["generation.temperature=nan"], ["temperature=nan must be"]),
        (["generation.temperature=inf"], ["temperature=inf must be"]),
        (["generation.top_p=0"], ["top_p=0.0 must be above 0 and at most 1"]),
        (["generation.top_p=1.1"], ["top_p=1.1 must be above 0 and at most 1"]),
        (["generation.top_p=nan"], ["top_p=nan must be above 0"]),
        (["generation.temprature=1"], ["temprature", "temperature"]),
        (["generation.samples=many"], ["samples", "many"]),
        (["selection.top_n=0"], ["selection.top_n=0 must be at least 1"]),
        (["selection.threshold=nan"], ["selection.threshold=nan must be a number"]),
        (["pmi.window=0"], ["pmi.window=0 must be at least 1"]),
        (["pmi.min_count=0"], ["pmi.min_count=0 must be at least 1"]),
        (["pmi.min_together=-1"], ["pmi.min_together=-1 must be at least 1"]),
        (["pmi.windw=3"], ["windw", "window"]),
        (["coverage.threshold=1.1"], ["coverage.threshold=1.1 must be 0 to 1"]),
        (["coverage.threshold=nan"], ["coverage.threshold=nan must be 0 to 1"]),
        (["coverage.top_k=0"], ["coverage.top_k=0 must be at least 1"]),
        (["coverage.wrds=[a]"], ["wrds", "words"]),
        (["coverage.words=[date]"], ["coverage.words", "add steer=grid"]),
        (["coverage.words=[]"], ["coverage.words has no word", "[network,date]"]),
        (["coverage.words=[3]"], ["coverage.words: 3 is no text", "[network,date]"]),
        (["coverage.words=[date,null]"], ["coverage.words: None is no text"]),
        (["coverage.words=3"], ["coverage.words=3 is no list of words"]),
        (['coverage.words=[date," "]'], ["coverage.words: ' ' is no word"]),
        (["coverage.words=['++']"], ["coverage.words: '++' is no word"]),
        (["coverage.words=[date,Date]"], ["coverage.words: date is there twice"]),
        (["coverage.words=date"], ["coverage.words=date can't be read", "a word a line"]),
        (
            ["coverage.words=[date]", "steer=grid", "generation.n_prompts=1"],
            ["coverage.words needs at least two prompts"],
        ),
        (["choice.rule=budge"], ["choice.rule 'budge'", "'budget'"]),
        (
            ["steer=grid", "choice.rule=judge"],
            ["choice.rule=judge needs a language model, judge=openai|anthropic|local."],
        ),
        (
            ["steer=grid", "choice.rule=judge", "judge=lexical"],
            ["choice.rule=judge needs a language model", "learns its words from a set of concepts"],
        ),
        (
            ["steer=grid", "choice.rule=judge", "judge=local", "judge.model=m"],
            ["choice.rule=judge needs concept=WORD"],
        ),
        (
            ["steer=grid", "judge=local", "judge.model=m"],
            ["judge=local is read only beside choice.rule=judge or concepts=NAME"],
        ),
        (["choice.rule=kl", "choice.kl_budget=0"], ["choice.kl_budget=0.0 must be positive"]),
        (["choice.success_cap=0"], ["choice.success_cap=0.0 must be positive"]),
        (["choice.perplexity_budget=inf"], ["choice.perplexity_budget=inf must be positive"]),
    ],
)
def test_a_bad_value_is_one_clear_sentence(words: list[str], parts: list[str]) -> None:
    message = refusal(*words)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "words",
    [
        ["steer=grid"],
        ["steer=axbench"],
        ["steer=signed"],
        ["steer=ablation"],
        ["steer.factors=2"],
        ["steer.factors=[-0.5,1e1]", "steer.operator=ablate", "steer.unit=norm"],
        ["steer=grid", "generation.temperature=0", "generation.top_p=1", "generation.stop=null"],
        ["steer=grid", "generation.prompts=Note", "generation.stop=['.',\"\\n\"]"],
        ["steer=grid", "steer.together=[2,5]", "choice.success=success_1"],
        [
            "steer=grid",
            "steer.controls=[random_direction,random_feature]",
            "selection.threshold=0.0",
            "selection.top_n=1",
        ],
        ["coverage.words=[date,machine learning]", "steer=grid", "shard=1/2"],
    ],
)
def test_good_values_pass(words: list[str]) -> None:
    check(compose([*GROUPS, *words]))


def test_nothing_is_steered_unless_factors_are_given() -> None:
    assert parse_factors(compose(GROUPS).steer.factors) == []
    grid = compose([*GROUPS, "steer=grid"]).steer
    assert parse_factors(grid.factors) == [0.2, 0.4, 0.8, 1.2, 1.6, 2, 3, 4, 6, 8, 10, 20]
    assert (grid.operator, grid.unit, grid.positions, grid.keep_error) == (
        "add", "a_max", "last", True,
    )  # fmt: skip
    axbench = compose([*GROUPS, "steer=axbench"]).steer
    assert (axbench.unit, axbench.positions) == ("max_activation", "all")


def test_defaults_pass_their_own_checks() -> None:
    check_generation(GenerationConfig())
    check_selection(SelectionConfig())
