"""One subject for all tests that don't change it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steerlens import load_subject
from steerlens.config.compose import compose
from steerlens.engine.subject import Subject
from steerlens.scores import RunContext
from steerlens.storage.store import Store
from tests.support.tiny import save_sae


@pytest.fixture(scope="session")
def subject(
    tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    folder = tmp_path_factory.mktemp("generation")
    sae = save_sae(folder / "sae", "jumprelu")
    paths = {"model.path": tiny_folder("llama"), "sae.path": sae, "paths.cache_dir": folder}
    return load_subject("local", "local", "all", **paths)


@pytest.fixture
def corpus_run(tmp_path: Path) -> RunContext:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the w{20 + i} of w{60 + i % 7} my experience" for i in range(12)))
    corpus = compose(["corpus=text", f"corpus.path={text}"]).corpus
    return RunContext(corpus=corpus, store=Store(tmp_path / "cache"))
