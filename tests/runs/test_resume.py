"""Runs that are killed, repeated and widened: equal tables, and nothing finished is done again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from steerlens.results import FEATURES
from steerlens.results.status import read_status
from tests.support.tiny import D_SAE, save_sae

pytestmark = pytest.mark.slow

CHILD = """
import sys, time
from steerlens.scores import scoring
from steerlens.engine.activations import stream
from steerlens.scores import output

log, slowness = sys.argv[1], float(sys.argv[2])
scoring.BLOCK = 4
stream.SORTED_AT_ONCE, stream.KEEP_SECONDS = 4, 0
real_score, real_residuals = output.score, stream.residuals

def score(subject, features, config, run):
    found = real_score(subject, features, config, run)
    time.sleep(slowness)
    with open(log, "a") as file:
        file.writelines(f"feature {feature}\\n" for feature in features)
    return found

def residuals(subjects, pieces):
    time.sleep(slowness)
    with open(log, "a") as file:
        file.writelines(f"piece {piece.tolist()}\\n" for piece in pieces)
    return real_residuals(subjects, pieces)

output.score, stream.residuals = score, residuals
from steerlens.cli import main
main(sys.argv[3:])
"""


@pytest.fixture
def start(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a run: `start("name", slowness, override, ...)`."""
    sae = save_sae(tmp_path / "sae", "jumprelu")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the w{20 + i} of w{60 + i % 7} my experience" for i in range(40)))

    def begin(name: str, slowness: float, *overrides: str) -> subprocess.Popen[bytes]:
        arguments = [
            *("model=local", f"model.path={tiny_folder('llama')}"),
            *("sae=local", f"sae.path={sae}", "score=all", "tracking.mode=disabled"),
            *("corpus=text", f"corpus.path={text}", "score.input.min_examples=1"),
            f"paths.output_dir={tmp_path / name}",
            *overrides,
        ]
        command = [sys.executable, "-c", CHILD, str(tmp_path / f"{name}.log"), str(slowness)]
        return subprocess.Popen([*command, *arguments], stderr=subprocess.DEVNULL)

    return begin


def done(log: Path, kind: str) -> list[str]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if line.startswith(kind)]


def parts(cache: Path) -> int:
    return len(list(cache.rglob("part-*.parquet"))) + len(list(cache.rglob("*.safetensors")))


def test_a_killed_run_goes_on_where_it_was(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    assert start("whole", 0.0, f"paths.cache_dir={tmp_path / 'a'}").wait() == 0
    whole = done(tmp_path / "whole.log", "")
    assert len(whole) == len(set(whole)) == D_SAE + 40

    cache, log = tmp_path / "b", tmp_path / "killed.log"
    draw = random.Random(0)
    for _ in range(3):
        before = parts(cache)
        child = start("killed", 0.05, f"paths.cache_dir={cache}")
        while parts(cache) <= before + draw.randrange(3) and child.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.1)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert start("killed", 0.0, f"paths.cache_dir={cache}").wait() == 0
    # At most what was under way at each of the three kills is there twice.
    assert len(done(log, "feature")) <= D_SAE + 3 * 4
    assert len(done(log, "piece")) <= 40 + 3 * 4
    pd.testing.assert_frame_equal(
        FEATURES.read(tmp_path / "killed"), FEATURES.read(tmp_path / "whole")
    )


def test_sigterm_keeps_what_is_finished_and_the_same_command_goes_on(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "ended"
    child = start("ended", 0.3, f"paths.cache_dir={cache}")
    while parts(cache) < 3 and child.poll() is None:
        time.sleep(0.05)
    child.terminate()
    assert child.wait() == 143
    status = read_status(out)
    assert (status["state"], status["reason"]) == ("interrupted", "ended by SIGTERM")
    assert start("ended", 0.0, f"paths.cache_dir={cache}").wait() == 0
    assert read_status(out)["state"] == "done"
    assert len(done(tmp_path / "ended.log", "feature")) <= D_SAE + 4


def test_a_second_run_computes_nothing_and_a_wider_one_only_what_is_missing(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    cache = f"paths.cache_dir={tmp_path / 'cache'}"
    assert start("some", 0.0, cache, "features.ids=[3,4,40]").wait() == 0
    assert start("all", 0.0, cache).wait() == 0
    assert len(done(tmp_path / "all.log", "feature")) == D_SAE - 3
    assert done(tmp_path / "all.log", "piece") == []
    assert start("again", 0.0, cache).wait() == 0
    assert done(tmp_path / "again.log", "") == []
    every, again = (FEATURES.read(tmp_path / name) for name in ("all", "again"))
    pd.testing.assert_frame_equal(every, again)
    some = FEATURES.read(tmp_path / "some")
    pd.testing.assert_frame_equal(every.iloc[[3, 4, 40]].reset_index(drop=True), some)
    changed = start("changed", 0.0, cache, "score.output.factor=3")
    assert changed.wait() == 0
    assert len(done(tmp_path / "changed.log", "feature")) == D_SAE


def test_runs_at_the_same_time_share_the_cache(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    cache = f"paths.cache_dir={tmp_path / 'cache'}"
    children = [start(name, 0.01, cache) for name in ("one", "two")]
    assert [child.wait() for child in children] == [0, 0]
    one, two = (FEATURES.read(tmp_path / name) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
