"""What is lost when machines fail: commands that are disturbed, run again, and compared.

Commands on a tiny subject of random weights are killed at random points and around every rename;
their disk fills up at each place that writes; their cache is damaged or shared by many; W&B and the
judge's server fail. After each fault the same command runs again, and its tables, `summary.json`
and `report.md` must be those of an undisturbed run.

    python -m experiments.faults.run [--minutes 30] [--cases scores,grid] [--kinds kill,disk]

Commands run in forks of a process that has the imports; `real` ones as users start them. Kinds take
turns until the time is over. Prints a table; the exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pandas as pd

from experiments.faults import disturb
from experiments.faults.cases import CACHE, CASES, OUT, save_material, words_of
from steerlens.results.status import read_status
from tests.support.judge_server import JudgeServer, Reply

PATIENCE = 300
"""Seconds after which a command counts as one that hangs."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
N_KILLS, N_REAL = 20, 4
"""Random points of each case at which it is killed, by each signal; and as users start it."""
TEXTS = ("summary.json", "report.md", "sweep.csv")
HANGS = "hangs"

REPLIES: dict[str, Callable[[int], Reply]] = {
    "429": lambda _number: Reply(status=429),
    "500": lambda _number: Reply(status=500),
    "every other 500": lambda number: Reply(status=500 if number % 2 else 200),
    "late": lambda _number: Reply(delay=0.4),
    "never": lambda _number: Reply(delay=PATIENCE),
    "a byte at a time": lambda _number: Reply(trickles=True),
    "connection dropped": lambda _number: Reply(drop=True),
    "HTML": lambda _number: Reply(raw=b"<html>gateway</html>", content_type="text/html"),
    "another JSON": lambda _number: Reply(raw=b'{"choices": [{"message": null}]}'),
    "no JSON": lambda _number: Reply(raw=b'{"choices": [{"mess'),
}
"""What a judge's server does with a request of a number."""


class Try(NamedTuple):
    """A command, and what happens to it."""

    kind: str
    """The row of the table that counts it."""
    case: str
    what: str
    """Happens, in words."""
    disturb: Callable[[], None] | None = None
    """In the process of the command, before it begins."""
    prepare: Callable[[Path], None] | None = None
    """In the folder of the try, before the command."""
    kill: tuple[signal.Signals, float] | None = None
    """The signal that comes after so many seconds."""
    more: tuple[str, ...] = ()
    """Further arguments."""
    processes: int = 1
    """That run the command at once, each in a folder of its own, on one cache."""
    is_real: bool = False
    """Whether it is started as users do."""
    judge: Callable[[int], Reply] | None = None


@dataclass
class Bench:
    """What all tries share."""

    root: Path
    server: JudgeServer
    seconds_of_imports: float
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each case takes undisturbed."""

    @property
    def material(self) -> Path:
        return self.root / "material"

    def reference(self, case: str) -> Path:
        """Give the folder of an undisturbed run, which is done once."""
        folder = self.root / "undisturbed" / case
        if case not in self.seconds:
            folder.mkdir(parents=True)
            start = time.monotonic()
            code = run_fork(self.words(case), folder)
            self.seconds[case] = time.monotonic() - start
            if code != 0:
                raise RuntimeError(f"{case} fails undisturbed ({code}): {last_line(folder)}")
        return folder

    def words(self, case: str, *more: str) -> list[str]:
        """Give the arguments of a case."""
        if case == "judge":
            more = (f"judge.base_url={self.server.url}/v1", *more)
        return words_of(case, self.material, *more)


def start_fork(
    words: Sequence[str], folder: Path, disturbed: Callable[[], None] | None = None
) -> int:
    """Start a command in a fork of this process, in `folder`, and give its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70  # nothing below may get out of here
    try:
        log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        sys.argv = ["steerlens", *words]
        from steerlens.cli import main

        if disturbed:
            disturbed()
        main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def wait_for(
    pid: int, kill: tuple[signal.Signals, float] | None = None, patience: float = PATIENCE
) -> int | str:
    """Wait for a process; give its exit code, negative for a signal, or that it hangs, which is
    to take more than `patience` seconds."""
    start = time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - start
        if kill and passed >= kill[1]:
            os.kill(pid, kill[0])
            kill = None
        if passed > patience:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return HANGS
        time.sleep(0.005)


def run_fork(words: Sequence[str], folder: Path) -> int | str:
    """Run a command in a fork to its end."""
    return wait_for(start_fork(words, folder))


def start_real(words: Sequence[str], folder: Path) -> int:
    """Start a command as users do."""
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", "steerlens", *words]
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log).pid


def last_line(folder: Path) -> str:
    """Give the last line that a command has printed."""
    lines = (folder / "log").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")[:300]


def difference(folder: Path, expected: Path) -> str | None:
    """Say in what the results in `folder` differ from those expected; None if in nothing."""
    names = {path.name for path in expected.glob("*.parquet")} | {
        name for name in TEXTS if (expected / name).is_file()
    }
    there = {path.name for path in folder.glob("*.parquet")}
    if others := sorted((names ^ there) - set(TEXTS)):
        return f"{others[0]} is in one of the two alone"
    for name in sorted(names):
        if not (folder / name).is_file():
            return f"there is no {name}"
        if name in TEXTS:
            if read_comparable(folder / name) != read_comparable(expected / name):
                return f"{name} is another"
            continue
        try:
            pd.testing.assert_frame_equal(
                pd.read_parquet(folder / name), pd.read_parquet(expected / name), check_exact=True
            )
        except AssertionError as error:
            return f"{name}: {' '.join(str(error).split())[:200]}"
    return None


def read_comparable(file: Path) -> str:
    """Read a text without what is never twice the same: how long a sweep's jobs took, and where
    the command wrote.
    """
    if file.suffix == ".csv":
        return pd.read_csv(file).drop(columns="seconds", errors="ignore").to_csv()
    lines, has_seconds = [], False
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line.startswith("    steerlens "):
            continue
        has_seconds = line.endswith("| seconds |") or (has_seconds and line.startswith("|"))
        lines.append(line.rstrip("|").rpartition("|")[0] if has_seconds else line)
    return "\n".join(lines)


def attempt(one: Try, bench: Bench, folder: Path) -> str | None:
    """Disturb a command in `folder`, run it again, and say what is lost; None if nothing is."""
    expected = bench.reference(one.case) / OUT
    folders = [folder] if one.processes == 1 else [folder / f"{n}" for n in range(one.processes)]
    for each in folders:
        each.mkdir(parents=True)
    if one.prepare:
        one.prepare(folder)
    shared = (f"paths.cache_dir={folder / CACHE}",) if one.processes > 1 else ()
    words = bench.words(one.case, *one.more, *shared)
    if one.judge:
        answer = one.judge
        bench.server.answer = lambda _prompt, number: answer(number)
    start = start_real if one.is_real else partial(start_fork, disturbed=one.disturb)
    # Processes that share the cores are slow, not hung.
    patience = PATIENCE * max(1, one.processes / (os.cpu_count() or 1))
    codes = [wait_for(pid, one.kill, patience) for pid in [start(words, each) for each in folders]]
    bench.server.answer = lambda _prompt, _number: Reply()
    if HANGS in codes:
        return "it hangs"
    if one.kill is None and one.disturb is None and one.judge is None and any(codes):
        return f"it ends with {codes}: {last_line(folders[0])}"
    for code, each in zip(codes, folders, strict=True):
        is_done = code == 0 and read_status(each / OUT).get("state", "done") == "done"
        if is_done and not one.judge and (lost := difference(each / OUT, expected)):
            return f"at once: {lost}"
    for each in folders[:1]:
        code = run_fork(words, each)
        if code != 0:
            return f"run again, it ends with {code}: {last_line(each)}"
        if lost := difference(each / OUT, expected):
            return f"run again: {lost}"
        if left := [path for path in (each / OUT).rglob(".*.tmp") if path.is_file()]:
            return f"run again, it leaves {left[0].name}"
    return None


def _kills(bench: Bench, case: str, draw: Random) -> Iterator[Try]:
    bench.reference(case)
    for _ in range(N_KILLS):
        for by in SIGNALS:
            after = draw.random() * bench.seconds[case]
            what = f"after {after:.2f} s"
            yield Try(f"{by.name} at a random point", case, what, kill=(by, after))


def _renames(bench: Bench, case: str, _draw: Random) -> Iterator[Try]:
    for number, target in enumerate(_noted(bench, case, disturb.noting_renames)):
        for is_after in (False, True):
            for by in SIGNALS:
                side = "after" if is_after else "before"
                act = disturb.at_rename(number, is_after, by)
                yield Try(f"{by.name} {side} a rename", case, f"{number}, to {target}", act)


def _disks(bench: Bench, case: str, _draw: Random) -> Iterator[Try]:
    folder = bench.root / "places" / case
    for place in dict.fromkeys(_noted(bench, case, partial(disturb.noting_places, folder))):
        yield Try("disk full", case, place, _full_in_its_folder(place))


def _full_in_its_folder(place: str) -> Callable[[], None]:
    return lambda: disturb.full_from(place, Path.cwd())()


def _noted(bench: Bench, case: str, noting: Callable[[Path], Callable[[], None]]) -> list[str]:
    """Give the lines that an undisturbed run writes into a log."""
    bench.reference(case)
    folder = bench.root / "places" / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = bench.root / f"{case}.notes"
    log.unlink(missing_ok=True)
    code = wait_for(start_fork(bench.words(case), folder, noting(log)))
    if code != 0:
        raise RuntimeError(f"{case} fails undisturbed ({code}): {last_line(folder)}")
    return log.read_text(encoding="utf-8").split("\n")[:-1]


def _caches(bench: Bench, case: str, draw: Random) -> Iterator[Try]:
    cache = bench.reference(case) / CACHE
    for name, files in disturb.cache_groups(cache).items():
        for how in disturb.DAMAGES:
            prepare = partial(_copy_damaged, cache, files, how, Random(draw.random()))
            yield Try(f"cache files {how}", case, name, prepare=prepare)


def _copy_damaged(cache: Path, files: Sequence[Path], how: str, draw: Random, folder: Path) -> None:
    shutil.copytree(cache, folder / CACHE)
    disturb.damage(folder / CACHE, files, how, draw)


def _many(_bench: Bench, case: str, _draw: Random) -> Iterator[Try]:
    for n in (16, 32) if case in ("scores", "grid") else ():
        yield Try(f"{n} processes on one cache", case, "at once", processes=n)


def _wandb(_bench: Bench, case: str, _draw: Random) -> Iterator[Try]:
    more = ("tracking.mode=online",)
    yield Try("W&B gone", case, "not installed", disturb.without_wandb, more=more)
    for at in ("init", "log", "define_metric", "show", "finish"):
        yield Try("W&B gone", case, at, disturb.with_failing_wandb(at), more=more)


def _judges(_bench: Bench, case: str, _draw: Random) -> Iterator[Try]:
    for name, answer in REPLIES.items() if case == "judge" else ():
        yield Try("judge fails", case, name, judge=answer)


def _real(bench: Bench, case: str, draw: Random) -> Iterator[Try]:
    bench.reference(case)
    for n in range(N_REAL):
        after = draw.random() * (bench.seconds_of_imports + bench.seconds[case])
        by = SIGNALS[n % 2]
        what = f"{by.name} after {after:.2f} s"
        yield Try("real command killed", case, what, kill=(by, after), is_real=True)


PLANS: dict[str, Callable[[Bench, str, Random], Iterator[Try]]] = {
    "kill": _kills,
    "rename": _renames,
    "disk": _disks,
    "cache": _caches,
    "wandb": _wandb,
    "judge": _judges,
    "real": _real,
    "many": _many,
}


def plan(
    bench: Bench, kinds: Sequence[str], cases: Sequence[str], draw: Random, each: int | None
) -> Iterator[tuple[Try, int]]:
    """Give tries of all kinds and cases in turns, each kind of a case in an order of the draw's.

    With each how many more its kind and case has. What a plan needs is run when its turn comes.
    """
    waiting = [(kind, case) for case in cases for kind in kinds]
    plans: list[list[Try]] = []
    while waiting or plans:
        if waiting:
            kind, case = waiting.pop(0)
            of_case = [*PLANS[kind](bench, case, draw)]
            draw.shuffle(of_case)
            plans.append(of_case[:each])
        for tries in plans:
            if tries:
                yield tries.pop(), len(tries)
        plans = [tries for tries in plans if tries]


def preload() -> None:
    """Import all that commands need, and draw figures without their pictures."""
    import sae_lens  # noqa: F401
    import torch
    import transformer_lens  # noqa: F401
    from matplotlib.figure import Figure

    torch.set_num_threads(1)

    def savefig(_figure: Any, file: Any, **_settings: Any) -> None:
        file.write(b"a picture")

    Figure.savefig = savefig  # type: ignore[method-assign,assignment]


def table(done: Sequence[tuple[Try, str | None]], left: Mapping[tuple[str, str], int]) -> str:
    """Show for each kind how many tries survived and lost, and how many there was no time for."""
    lines = ["| fault | tried | survived | lost | no time for |", "|---|---|---|---|---|"]
    for kind in (*dict.fromkeys(one.kind for one, _ in done), None):
        of_kind = [why for one, why in done if kind in (one.kind, None)]
        n_lost = sum(why is not None for why in of_kind)
        n_left = sum(n for (of, _), n in left.items() if kind in (of, None))
        name = kind or "all"
        lines.append(f"| {name} | {len(of_kind)} | {len(of_kind) - n_lost} | {n_lost} | {n_left} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Try what there is time for, print the table, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--kinds", default=",".join(PLANS))
    parser.add_argument("--each", type=int, help="tries of each kind of a case, at most")
    parser.add_argument("--keep", type=Path, help="a folder for what was lost")
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    cases = [case for case in CASES if case in args.cases.split(",")]
    kinds = [kind for kind in PLANS if kind in args.kinds.split(",")]
    os.environ["HF_HUB_OFFLINE"] = "1"
    start = time.monotonic()
    preload()
    imports = time.monotonic() - start
    done: list[tuple[Try, str | None]] = []
    left: dict[tuple[str, str], int] = {}
    with tempfile.TemporaryDirectory() as root, JudgeServer() as server:
        bench = Bench(Path(root), server, imports)
        save_material(bench.material)
        for number, (one, more) in enumerate(
            plan(bench, kinds, cases, Random(args.seed), args.each)
        ):
            left[one.kind, one.case] = more
            if time.monotonic() > end:
                left[one.kind, one.case] += 1
                break
            folder = bench.root / f"{number}"
            why = attempt(one, bench, folder)
            done.append((one, why))
            print(f"{one.kind}, {one.case}, {one.what}: {why or 'survived'}", flush=True)
            if why and args.keep:
                shutil.copytree(folder, args.keep / f"{number}", symlinks=True)
            shutil.rmtree(folder)
    print(table(done, left))
    return int(any(why for _, why in done))


if __name__ == "__main__":
    sys.exit(main())
