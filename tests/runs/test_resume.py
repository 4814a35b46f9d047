"""Runs that are killed, repeated and widened: equal tables, and nothing finished is done again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens.results import FEATURES
from steerlens.results.status import read_status
from tests.support import forked
from tests.support.tiny import D_SAE, save_sae

pytestmark = pytest.mark.slow

Start = Callable[..., ForkServerProcess]


def logged(log: Path, slowness: float, words: list[str]) -> None:
    """Run the command, slowly, and log every feature and every piece of text that it computes."""
    from steerlens.cli import main
    from steerlens.engine.activations import stream
    from steerlens.scores import output, scoring

    scoring.BLOCK = 4
    stream.SORTED_AT_ONCE, stream.KEEP_SECONDS = 4, 0
    real_score, real_residuals = output.score, stream.residuals

    def score(subject: Any, features: Any, config: Any, run: Any) -> Any:
        columns = real_score(subject, features, config, run)
        time.sleep(slowness)
        with log.open("a") as file:
            file.writelines(f"feature {feature}\n" for feature in features)
        return columns

    def residuals(subjects: Any, pieces: Any) -> Any:
        time.sleep(slowness)
        with log.open("a") as file:
            file.writelines(f"piece {piece.tolist()}\n" for piece in pieces)
        return real_residuals(subjects, pieces)

    output.score, stream.residuals = score, residuals
    main(words)


@pytest.fixture
def start(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Start:
    """Starts a run: `start("name", slowness, override, ...)`."""
    sae = save_sae(tmp_path / "sae", "jumprelu")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the w{20 + i} of w{60 + i % 7} my experience" for i in range(40)))

    def begin(name: str, slowness: float, *overrides: str) -> ForkServerProcess:
        arguments = [
            *("model=local", f"model.path={tiny_folder('llama')}"),
            *("sae=local", f"sae.path={sae}", "score=all", "tracking.mode=disabled"),
            *("corpus=text", f"corpus.path={text}", "score.input.min_examples=1"),
            f"paths.output_dir={tmp_path / name}",
            *overrides,
        ]
        return forked.start(logged, tmp_path / f"{name}.log", slowness, arguments)

    return begin


def ended(child: ForkServerProcess) -> int | None:
    """The exit code of a run, when it has ended."""
    child.join()
    return child.exitcode


def done(log: Path, kind: str) -> list[str]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if line.startswith(kind)]


def parts(cache: Path) -> int:
    return len(list(cache.rglob("part-*.parquet"))) + len(list(cache.rglob("*.safetensors")))


def test_a_killed_run_goes_on_where_it_was(start: Start, tmp_path: Path) -> None:
    assert ended(start("whole", 0.0, f"paths.cache_dir={tmp_path / 'a'}")) == 0
    whole = done(tmp_path / "whole.log", "")
    assert len(whole) == len(set(whole)) == D_SAE + 40

    cache, log = tmp_path / "b", tmp_path / "killed.log"
    draw = random.Random(0)
    for _ in range(3):
        before = parts(cache)
        child = start("killed", 0.05, f"paths.cache_dir={cache}")
        while parts(cache) <= before + draw.randrange(3) and child.is_alive():
            time.sleep(0.01)
        time.sleep(draw.random() * 0.1)
        child.kill()
        child.join()
    assert ended(start("killed", 0.0, f"paths.cache_dir={cache}")) == 0
    # At most what was under way at each of the three kills is there twice.
    assert len(done(log, "feature")) <= D_SAE + 3 * 4
    assert len(done(log, "piece")) <= 40 + 3 * 4
    pd.testing.assert_frame_equal(
        FEATURES.read(tmp_path / "killed"), FEATURES.read(tmp_path / "whole")
    )


def test_sigterm_keeps_what_is_finished_and_the_same_command_goes_on(
    start: Start, tmp_path: Path
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "ended"
    child = start("ended", 0.3, f"paths.cache_dir={cache}")
    while parts(cache) < 3 and child.is_alive():
        time.sleep(0.05)
    child.terminate()
    assert ended(child) == 143
    status = read_status(out)
    assert (status["state"], status["reason"]) == ("interrupted", "ended by SIGTERM")
    assert ended(start("ended", 0.0, f"paths.cache_dir={cache}")) == 0
    assert read_status(out)["state"] == "done"
    assert len(done(tmp_path / "ended.log", "feature")) <= D_SAE + 4


def test_a_second_run_computes_nothing_and_a_wider_one_only_what_is_missing(
    start: Start, tmp_path: Path
) -> None:
    cache = f"paths.cache_dir={tmp_path / 'cache'}"
    assert ended(start("some", 0.0, cache, "features.ids=[3,4,40]")) == 0
    assert ended(start("all", 0.0, cache)) == 0
    assert len(done(tmp_path / "all.log", "feature")) == D_SAE - 3
    assert done(tmp_path / "all.log", "piece") == []
    assert ended(start("again", 0.0, cache)) == 0
    assert done(tmp_path / "again.log", "") == []
    every, again = (FEATURES.read(tmp_path / name) for name in ("all", "again"))
    pd.testing.assert_frame_equal(every, again)
    some = FEATURES.read(tmp_path / "some")
    pd.testing.assert_frame_equal(every.iloc[[3, 4, 40]].reset_index(drop=True), some)
    changed = start("changed", 0.0, cache, "score.output.factor=3")
    assert ended(changed) == 0
    assert len(done(tmp_path / "changed.log", "feature")) == D_SAE


def test_runs_at_the_same_time_share_the_cache(start: Start, tmp_path: Path) -> None:
    cache = f"paths.cache_dir={tmp_path / 'cache'}"
    children = [start(name, 0.01, cache) for name in ("one", "two")]
    assert [ended(child) for child in children] == [0, 0]
    one, two = (FEATURES.read(tmp_path / name) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
