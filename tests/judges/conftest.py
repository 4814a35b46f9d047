"""Judges' tests: no key or proxy of the machine, and runs with a judge at a server of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from steerlens.config.schema import JudgeConfig, PathsConfig, RunConfig
from steerlens.judges import Item
from tests.support.judge_server import JudgeServer

ITEMS = [
    Item("The keel slid off the trailer.", "boats", "Describe a launch."),
    Item("Tax is due in June.", "boats", "Explain taxes."),
]


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for client in ("OPENAI", "ANTHROPIC"):
        for name in ("API_KEY", "BASE_URL", "AUTH_TOKEN", "ORG_ID", "PROJECT_ID"):
            monkeypatch.delenv(f"{client}_{name}", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., JudgeServer]]:
    """Starts a server that lives as long as the test."""
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(JudgeServer(*args, **settings))


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., RunConfig]:
    """A run's configuration with a judge at `server`: `configure(server, attempts=1)`."""

    def make(server: JudgeServer | str, judge: str = "openai", **settings: Any) -> RunConfig:
        url = server if isinstance(server, str) else server.url
        url += "/v1" if judge == "openai" else ""
        run = RunConfig(paths=PathsConfig("unused", str(tmp_path)))
        run.judge = JudgeConfig(judge, **{"model": "judge-small", "base_url": url, **settings})
        return run

    return make
