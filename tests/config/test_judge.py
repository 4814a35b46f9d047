"""Values of `judge`: what is refused before anything is loaded, in one sentence."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from steerlens.config.compose import compose
from steerlens.config.entries import options
from steerlens.config.judge import check_judge, judge_key
from steerlens.config.registry import parts_of
from steerlens.config.schema import JudgeConfig
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check

OURS: dict[str, Any] = {"name": "openai", "model": "m", "base_url": "http://127.0.0.1:8000/v1"}
LOCAL: dict[str, Any] = {"name": "local", "model": "DIR"}
PRICE = {"usd_per_million_input": 0.0, "usd_per_million_output": 0.0}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "BASE_URL"):
        for client in ("OPENAI", "ANTHROPIC"):
            monkeypatch.delenv(f"{client}_{name}", raising=False)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"name": "opena"}, ["unknown judge 'opena'", "'openai'"]),
        ({"name": "openai", "model": "m"}, ["export OPENAI_API_KEY=", "judge.base_url=URL"]),
        ({"name": "anthropic", "model": "m"}, ["a key", "export ANTHROPIC_API_KEY="]),
        (OURS | {"key_variable": "MY_KEY"}, ["needs a key", "export MY_KEY="]),
        (OURS | {"model": None}, ["judge=openai needs judge.model=NAME"]),
        (LOCAL | {"model": " "}, ["judge=local needs judge.model=NAME"]),
        ({"name": "lexical", "model": "x"}, ["judge.model means nothing to judge=lexical"]),
        ({"name": "lexical", "base_url": "http://x"}, ["judge.base_url means nothing"]),
        (LOCAL | {"base_url": "http://x"}, ["it is for judge=anthropic|openai."]),
        (LOCAL | {"temperature": 1.0}, ["judge.temperature=1.0"]),
        (OURS | {"base_url": "127.0.0.1:8000"}, ["no address of a server"]),
        (OURS | {"base_url": "http://h:99999/v1"}, ["no address of a server"]),
        (OURS | {"base_url": "http://[::1/v1"}, ["no address of a server"]),
        (OURS | {"base_url": "http://me:pw@host/v1"}, ["password", "environment"]),
        (OURS | {"base_url": "http://host/v1?api-key=x"}, ["a query", "environment"]),
        (OURS | {"base_url": "http://host/v1#x"}, ["a query", "environment"]),
        (OURS | {"budget_usd": 1.0}, ["needs the price of m at judge.base_url"]),
        (OURS | {"budget_usd": -1.0}, ["judge.budget_usd=-1.0 must be 0 or more"]),
        (OURS | {"budget_usd": float("nan")}, ["judge.budget_usd=nan must be 0 or more"]),
        (OURS | {"usd_per_million_input": 1.0}, ["give both"]),
        (OURS | {"concurrency": 0}, ["judge.concurrency=0 must be at least 1"]),
        (OURS | {"attempts": 0}, ["judge.attempts=0 must be at least 1"]),
        (OURS | {"max_tokens": 0}, ["judge.max_tokens=0 must be at least 1"]),
        (OURS | {"retries": -1}, ["judge.retries=-1 must be 0 or more"]),
        (OURS | {"timeout": 0.0}, ["judge.timeout=0.0 must be seconds"]),
    ],
)
def test_a_bad_value_is_one_clear_sentence(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(SteerlensError) as caught:
        check_judge(JudgeConfig(**settings))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "lexical"},
        {"name": "lexical", "budget_usd": 1.0},
        LOCAL,
        LOCAL | {"budget_usd": 1.0, "temperature": 0.0},
        OURS,
        OURS | {"budget_usd": 1.0} | PRICE,
        {"name": "anthropic", "model": "m", "base_url": "http://127.0.0.1:8000"},
    ],
)
def test_good_values_pass(settings: dict[str, Any]) -> None:
    check_judge(JudgeConfig(**settings))


def test_a_client_that_is_not_installed_is_told_with_how_it_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SteerlensError, match=r"pip install .* -e '\.\[judges\]'"):
        check_judge(JudgeConfig(**OURS))


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " secret ")
    hosted = JudgeConfig("openai", "gpt-4o-mini", budget_usd=1.0)
    check_judge(hosted)
    assert judge_key(hosted) == "secret"
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    hosted.budget_usd = None
    check_judge(hosted)
    assert judge_key(hosted) == "none"


def test_nobody_rates_unless_a_judge_is_chosen() -> None:
    assert compose([]).judge is None
    assert set(options()["judge"]) == set(parts_of("judges"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["judge=opena"], "unknown judge 'opena'; did you mean 'openai'"),
        (["judge.model=x"], "there is no judge yet; choose one with judge=anthropic|lexical|"),
        (["judge=openai", "judge.budget=1"], "did you mean 'judge.budget_usd'"),
        (["judge=local"], "judge.model"),
        (["judge=openai"], "export OPENAI_API_KEY="),
    ],
)
def test_the_command_line_is_answered_likewise(words: list[str], part: str) -> None:
    with pytest.raises(SteerlensError) as caught:
        check(compose(words))
    assert part in str(caught.value)


def test_checking_and_loading_a_servers_judge_need_no_torch() -> None:
    script = """
import sys
from steerlens.config.registry import parts_of
from steerlens.config.schema import JudgeConfig, PathsConfig, RunConfig
from steerlens.judges import load_judge
run = RunConfig(paths=PathsConfig("x", "y"))
run.judge = JudgeConfig("openai", "m", "http://127.0.0.1:1/v1")
load_judge(run)
assert not {"torch", "pandas", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "url",
    [
        *("http://h/v1?api-key=SECRET", "http://h/v1#SECRET", "http://me:SECRET@h/v1"),
        *("h/v1?key=SECRET", "me:SECRET@h/v1", "http://me:SECRET@h:99999/v1?a=SECRET"),
    ],
)
@pytest.mark.parametrize("where", ["setting", "environment"])
def test_a_key_in_an_address_is_refused_and_not_shown(
    url: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = JudgeConfig("openai", model="m", base_url=url if where == "setting" else None)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(SteerlensError) as caught:
        check_judge(judge)
    assert "SECRET" not in str(caught.value)
