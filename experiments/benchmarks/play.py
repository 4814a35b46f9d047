"""How long `steerlens play` takes to the first token, and to the last.

From the top of the repository (the default model; a minute on one core):

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.play

What `steerlens play layer=24` loads, asked as the page asks: texts of 40 tokens at four factors
beside the unsteered one. Prints for each request seconds of this process' own processor time and of
the clock. More arguments are settings.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerlens.config.settings import parse_settings
from steerlens.report.play.requests import Writing
from steerlens.runs.play import _what_is_played, parse_arguments
from steerlens.runs.play.player import _usual, load_player

FEATURE, OTHER_FEATURE = 1329, 7
OTHER_PROMPT = "What should I cook for my friends tonight?"


def main() -> None:
    start, clock = time.process_time(), time.perf_counter()
    typed = parse_arguments(sys.argv[1:] or ["layer=24"])
    config, tables = _what_is_played(typed)
    with tempfile.TemporaryDirectory() as folder:
        player = load_player(config, parse_settings(config), tables, Path(folder))
        print(f"loaded: {_since(start, clock)}", flush=True)
        asked = replace(_usual(player.live, FEATURE), max_new_tokens=player.live.max_new_tokens)
        requests = {
            "first request": asked,
            "the slider moved": replace(asked, factors=(*asked.factors, 6.0)),
            "another feature": replace(asked, features=(OTHER_FEATURE,)),
            "another prompt": replace(asked, prompt=OTHER_PROMPT),
            "the first request again": asked,
        }
        for name, writing in requests.items():
            first, last = _seconds(player.bench.write, writing)
            print(f"{name}: first token {first}; all {last}", flush=True)


def _seconds(write: Any, writing: Writing) -> tuple[str, str]:
    """Return what it takes to the first token that is shown, and to texts with their numbers."""
    start, clock = time.process_time(), time.perf_counter()
    told: list[str] = []

    def tell(event: Any) -> None:
        if not told and ("texts" in event or "done" in event):
            told.append(_since(start, clock))

    write(writing, tell)
    return told[0], _since(start, clock)


def _since(start: float, clock: float) -> str:
    cpu, clock_seconds = time.process_time() - start, time.perf_counter() - clock
    return f"{cpu:.2f} s of processor time, {clock_seconds:.2f} of the clock"


if __name__ == "__main__":
    main()
