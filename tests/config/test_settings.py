"""Settings that are parsed once: each value has the meaning that its parser gives it."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlens.config.compose import compose
from steerlens.config.prompts import PROMPTS, REQUESTS
from steerlens.config.settings import Shard, parse_settings, parse_steering, parse_subject
from steerlens.errors import SteerlensError


def test_every_value_has_its_one_meaning(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("network\n date\n\n")
    settings = parse_settings(
        compose(
            [
                "layer=[9,3]", "memory_budget=1GiB", "shard=1/4", "score=both",
                "steer.factors=[8,0,0.5]", "concept=[tea,coffee]", "features.concept=tea",
                f"coverage.words={words}", "toward.words=[music]", f"paths.cache_dir={tmp_path}",
                "quality.n_tokens=7",
            ]
        )
    )  # fmt: skip
    assert settings.subject.layers == (3, 9)
    assert settings.subject.memory_budget == 2**30
    assert settings.subject.cache_dir == settings.cache_dir == tmp_path
    assert settings.shard == Shard(1, 4)
    assert str(settings.shard) == "1/4"
    assert {*settings.scores} == {"output", "input"}
    assert settings.steering.factors == (0.5, 8.0)
    assert settings.steering.concept == ("tea", "coffee")
    assert settings.steering.concept_label == "tea, coffee"
    assert settings.features_concept == ("tea",)
    assert settings.coverage_words == ("network", "date")
    assert settings.toward_words == ("music",)
    assert settings.quality_tokens == 7


def test_what_is_not_asked_for_is_empty() -> None:
    settings = parse_settings(compose([]))
    assert settings.shard is None
    assert settings.steering.factors == settings.coverage_words == settings.toward_words == ()
    assert settings.steering.concept_label is None
    assert settings.features_concept == ()


@pytest.mark.parametrize("word", ["all", "late"])
def test_layers_that_the_model_tells_stay_a_word_until_some_are_chosen(word: str) -> None:
    settings = parse_subject(compose([f"layer={word}"]))
    assert settings.layers == word
    assert settings.of_layers([9, 3, 9]).layers == (3, 9)


def test_the_prompts_are_those_of_the_template_that_the_model_has() -> None:
    steering = parse_steering(compose(["generation.chat_template=auto", "generation.n_prompts=3"]))
    assert len(steering.prompts) == 3
    assert steering.for_model(True, "m").prompts == tuple(REQUESTS[:3])
    assert steering.for_model(False, "m").prompts == tuple(PROMPTS[:3])
    assert steering.for_model(True, "m").generation.chat_template is True
    asked_for = parse_steering(compose(["generation.chat_template=true"]))
    with pytest.raises(SteerlensError, match="m has no chat template"):
        asked_for.for_model(False, "m")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("layer=soon", "layer=soon is unknown"),
        ("memory_budget=much", "memory_budget=much is no amount"),
        ("shard=4/4", "shard=4/4 is out of range"),
        ("steer.factors=[x]", "steer.factors: 'x' is not a number"),
        ("coverage.words=[]", "coverage.words has no word"),
    ],
)
def test_a_value_without_a_meaning_is_refused(word: str, message: str) -> None:
    with pytest.raises(SteerlensError, match=message):
        parse_settings(compose([word]))
