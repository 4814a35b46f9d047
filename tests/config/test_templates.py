"""Which prompts are put into a chat template, and who is refused one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steerlens.config.compose import compose
from steerlens.config.folders import has_chat_template
from steerlens.config.prompts import PROMPTS, REQUESTS
from steerlens.config.schema import GenerationConfig, ModelConfig
from steerlens.config.steering import parse_prompts, with_template
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check
from tests.support.templates import save_template
from tests.support.tiny import save_model, save_sae


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("plain")
    save_model(folder / "model")
    save_sae(folder / "sae")
    return [f"model.path={folder / 'model'}", f"sae.path={folder / 'sae'}", *LOCAL]


LOCAL = ("model=local", "sae=local", "device=cpu", "steer=grid", "corpus=embedded")


@pytest.mark.parametrize(
    ("asked", "has_template", "expected"),
    [
        ("auto", True, True),
        ("auto", False, False),
        (True, True, True),
        (False, True, False),
        (False, False, False),
    ],
)
def test_auto_is_where_the_model_has_one(asked: Any, has_template: bool, expected: bool) -> None:
    got = with_template(GenerationConfig(chat_template=asked), has_template, "toy")
    assert got.chat_template is expected
    assert parse_prompts(got) == list(REQUESTS if expected else PROMPTS)


def test_own_prompts_stay_whether_inside_a_template_or_not() -> None:
    for chat in (True, False, "auto"):
        own = GenerationConfig(prompts=["Why?"], chat_template=chat)
        assert parse_prompts(own) == ["Why?"]


def test_there_are_as_many_requests_as_beginnings_each_once() -> None:
    assert len(REQUESTS) == len(PROMPTS) == len({*REQUESTS}) == 50
    assert all(request[-1] in ".?" for request in REQUESTS)


def test_the_papers_experiments_use_no_template_and_words_do() -> None:
    assert compose([]).generation.chat_template is False
    assert compose(["experiment=filter"]).generation.chat_template is False
    for asked in (["experiment=concept", "concept=a"], ["experiment=demo"]):
        assert compose(asked).generation.chat_template == "auto"
        assert compose(asked).choice.success == "concept_success"


def test_a_template_asked_of_a_folder_without_one_is_refused_before_loading(
    words: list[str],
) -> None:
    check(compose([*words, "generation.chat_template=auto"]))
    with pytest.raises(SteerlensError, match=r"^model has no chat template; use g") as one:
        check(compose([*words, "generation.chat_template=true"]))
    assert "\n" not in str(one.value)
    with pytest.raises(SteerlensError, match=r"of score output needs one, which model hasn't"):
        check(compose([*words, "score.chat_template=true"]))
    with pytest.raises(SteerlensError, match="must be true, false or auto"):
        check(compose([*words, "generation.chat_template=maybe"]))


def test_a_folder_tells_of_its_template(tmp_path: Path) -> None:
    model = ModelConfig(name="local", path=str(tmp_path))
    assert has_chat_template(model) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    assert has_chat_template(model) is False
    config.write_text('{"chat_template": "x"}')
    assert has_chat_template(model) is True
    config.write_text("{}")
    save_template(tmp_path)
    assert has_chat_template(model) is True


def test_words_are_checked_before_loading(words: list[str]) -> None:
    check(compose([*words, "toward.words=[sun,moon]", "choice.success=concept_success"]))
    for more, message in (
        (["steer=none"], "words are steered toward: add steer=grid"),
        (["toward.threshold=2"], "toward.threshold=2.0 must be 0 to 1"),
        (["toward.n=0"], "toward.n=0 must be at least 1"),
        (["shard=0/2"], "toward.words can't go with shard=0/2"),
        (["concept=sun"], "toward.words can't go with concept=sun"),
        (["toward.words=[sun,Sun]"], "sun is there twice"),
    ):
        with pytest.raises(SteerlensError, match=message):
            check(compose([*words, "toward.words=[sun,moon]", *more]))
