"""What a command costs beside importing libraries and loading weights.

From the top of the repository (the default model; half a minute on one core):

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.start

Runs one layer of 4,096 features in a process of its own, from an empty store of finished work, then
the same command again, its lines into a pipe; the machine must have run the default once. All in
seconds of that process' own processor time, which other programs on the machine hardly change:
until the first line, until the first feature is scored beside imports and weights, and for figures,
report and tracking; and how much of the first run the rerun costs. More arguments are settings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steerlens.config.compose import compose

SETTINGS = ["layer=19", "score=output", "features=random", "features.n=4096"]
IMPORTS, WEIGHTS, FIRST = "importing", "loading", "first feature"
MADE_ONCE = ("gguf", "agreement", "sha256")
OF_REPORT = ("starting W&B", "drawing", "logging", "finishing")


def main() -> None:
    print("seconds of processor time", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        usual = Path(compose(SETTINGS).paths.cache_dir)
        for name in MADE_ONCE:  # what the first command ever has made, and no other does
            (cache / name).symlink_to(usual / name)
        settings = [*SETTINGS, f"paths.cache_dir={cache}", *sys.argv[1:]]
        first = _run(settings, Path(folder) / "first")
        again = _run(settings, Path(folder) / "again")
    for name, times in (("first run", first), ("rerun", again)):
        beside = times[FIRST] - times[IMPORTS] - times[WEIGHTS]
        report = sum(times.get(name, 0.0) for name in OF_REPORT)
        print(
            f"{name}: first line {times['first line']:.1f}, first feature {times[FIRST]:.1f} "
            f"(imports {times[IMPORTS]:.1f}, weights {times[WEIGHTS]:.1f}, beside them "
            f"{beside:.1f}), figures, report and tracking {report:.1f}, all {times['all']:.1f}"
        )
    print(f"the rerun costs {again['all'] / first['all']:.0%} of the first run")


def _run(settings: list[str], folder: Path) -> dict[str, float]:
    """Run a command in a process, and return when in its processor time what had happened."""
    folder.mkdir()
    record = folder / "times.json"
    command = [sys.executable, "-m", "experiments.benchmarks.start"]
    env = {**os.environ, "STEERLENS_START": str(record)}
    words = [*settings, f"paths.output_dir={folder / 'out'}"]
    done = subprocess.run([*command, *words], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(record.read_text(encoding="utf-8"))


def _command(record: Path) -> None:
    """Be the command `steerlens`, and write down how long each of its phases took."""
    from steerlens import cli

    times: dict[str, float] = {}
    write = sys.stderr.write

    def first_write(text: str) -> int:
        times["first line"] = time.process_time()
        sys.stderr.write = write
        _time_phases(times)
        return write(text)

    sys.stderr.write = first_write
    try:
        cli.main()
    finally:
        times["all"] = time.process_time()
        record.write_text(json.dumps(times), encoding="utf-8")


def _time_phases(times: dict[str, float]) -> None:
    """Have the phases of the run write into `times` how long they take."""
    from steerlens.report import terminal

    phase, progress = terminal.phase, terminal.progress

    @contextmanager
    def timed_phase(description: str, *args: Any) -> Iterator[None]:
        start = time.process_time()
        with phase(description, *args):
            yield
        name = next((name for name in OF_REPORT if description.startswith(name)), None)
        name = name or description.partition(" ")[0]
        times[name] = times.get(name, 0.0) + time.process_time() - start

    @contextmanager
    def timed_progress(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with progress(*args, **kwargs) as advance:

            def timed(n: int, *more: int) -> None:
                times.setdefault(FIRST, time.process_time())
                advance(n, *more)

            yield timed

    terminal.phase, terminal.progress = timed_phase, timed_progress


if __name__ == "__main__":
    if "STEERLENS_START" in os.environ:
        _command(Path(os.environ.pop("STEERLENS_START")))
    else:
        main()
