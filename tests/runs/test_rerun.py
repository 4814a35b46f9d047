"""A run whose results are in the cache computes nothing: no forward, no logits, no text is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge

import steerlens.data.corpus
from steerlens.config.compose import compose
from steerlens.engine.subject.head import Head
from steerlens.results import CARDS, FEATURES, GENERATIONS, NEIGHBOURS
from steerlens.results.pmi import PMI_FILE
from steerlens.runs.run import run
from tests.support.frames import assert_identical
from tests.support.tiny import save_sae


@pytest.fixture
def words(tiny_folder: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """Overrides of a run that scores, steers and counts PMI, but for its folder."""
    save_sae(tmp_path / "sae", "jumprelu")
    draw = random.Random(0)
    lines = (" ".join(f"w{draw.randrange(12, 211)}" for _ in range(9)) for _ in range(60))
    (tmp_path / "text.txt").write_text("\n".join(lines))
    return [
        *("model=local", f"model.path={tiny_folder('llama')}"),
        *("sae=local", f"sae.path={tmp_path / 'sae'}", f"paths.cache_dir={tmp_path / 'cache'}"),
        *("corpus=text", f"corpus.path={tmp_path / 'text.txt'}", "corpus.context_length=16"),
        *("tracking=disabled", "device=cpu", "dtype=float32", "score=all", "features.n=5"),
        *("score.input.min_examples=1", "steer.factors=[2,8]", "generation.n_prompts=2"),
        *("generation.max_new_tokens=5", "choice.success_cap=100", "quality.n_tokens=200"),
        *("pmi.window=3", "pmi.min_count=1", "pmi.min_together=1"),
    ]


@pytest.mark.slow
def test_nothing_is_computed_twice(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn_figures: None
) -> None:
    calls: list[str] = []

    def counted(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(TransformerBridge, "forward")
    counted(Head, "logits")
    counted(steerlens.data.corpus, "marked_texts")
    run(compose([*words, f"paths.output_dir={tmp_path / 'first'}"]))
    assert {*calls} == {"forward", "logits", "marked_texts"}
    assert (tmp_path / "first" / PMI_FILE).is_file()
    calls.clear()
    run(compose([*words, f"paths.output_dir={tmp_path / 'second'}"]))
    assert calls == []
    first, second = tmp_path / "first", tmp_path / "second"
    for table in (FEATURES, GENERATIONS, CARDS, NEIGHBOURS):
        assert_identical(table.read(first), table.read(second))
    assert (first / PMI_FILE).read_bytes() == (second / PMI_FILE).read_bytes()
    # A damaged file is no result.
    (file,) = (tmp_path / "cache").rglob(PMI_FILE)
    file.write_bytes(file.read_bytes().replace(b'"windows": ', b'"windows": 1'))
    run(compose([*words, f"paths.output_dir={second}"]))
    assert {*calls} == {"marked_texts"}
    assert (first / PMI_FILE).read_bytes() == (second / PMI_FILE).read_bytes()
