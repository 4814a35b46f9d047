"""Which small changes of the code the tests notice.

Chooses changes of `engine`, `scores`, `steering` and `analysis` (operators, comparisons, constants,
lines that are left out) by a seed that is the commit's hash, makes each in a copy of the tree, and
runs the room's tests, those of the changed file first, until one fails.

    python -m experiments.mutations.run [--n 60] [--room scores] [--seconds 300] [--seed HASH]

A change counts as caught if a test fails that passes without it. What is finished is in `--out`,
and the same command goes on from there. Prints a table; the exit code is 1 if fewer than 90 % are
caught.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from experiments.mutations.mutate import KINDS, Mutation, choose, files_for

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
ROOMS = ("engine", "scores", "steering", "analysis")
SHARE = 0.9
"""Of the changes that must be caught."""
CAUGHT, SURVIVED = "caught", "survived"
UNFINISHED, FAILS_ANYWAY = "survived until time was over", "fails without it, too"
IMPORTS = ("numpy", "pandas", "torch", "transformers", "transformer_lens", "sae_lens", "hydra")
"""What every test would import again; changes are tested in forks of a process that has it."""


class Ended(NamedTuple):
    """Whether all tests came to their end, and which failed."""

    finished: bool
    failed: str | None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--room", choices=ROOMS, action="append", help="default: all four")
    parser.add_argument("--seconds", type=float, default=300, help="for each change, at most")
    parser.add_argument("--seed", help="default: the commit's hash")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "mutations")
    args = parser.parse_args()
    seed = args.seed or _git("rev-parse", "HEAD")
    folders = [SOURCE / "steerlens" / room for room in args.room or ROOMS]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{seed[:12]}.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    done = [row for row in map(json.loads, lines) if row["result"] in (CAUGHT, SURVIVED)]
    rows = []
    for module in IMPORTS:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = copy_tree(Path(folder))
        for file, mutation in choose(files, args.n, seed):
            change = {"file": file.relative_to(ROOT).as_posix(), **asdict(mutation)}
            row = next((row for row in done if row.items() >= change.items()), None)
            if row is None:
                row = {**change, **judge(tree, file.relative_to(ROOT), mutation, args.seconds)}
                with log.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(_line(row), flush=True)
            rows.append(row)
    text = table(rows)
    (args.out / f"{seed[:12]}.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    sys.exit(sum(row["result"] == CAUGHT for row in rows) < SHARE * len(rows))


def judge(tree: Path, file: Path, mutation: Mutation, seconds: float) -> dict[str, Any]:
    """Return whether a test of `tree` fails with `mutation` and passes without it, and which."""
    mutated = tree / file
    source = mutated.read_text(encoding="utf-8")
    start = time.monotonic()
    tests = files_for(mutated, tree / "src" / "steerlens", tree / "tests")
    mutated.write_text(mutation.apply(source), encoding="utf-8")
    try:
        ended = run_tests(tree, [str(test) for test in tests], seconds)
    finally:
        mutated.write_text(source, encoding="utf-8")
    result = SURVIVED if ended.finished else UNFINISHED
    if ended.failed is not None:
        passes = run_tests(tree, [ended.failed] if "::" in ended.failed else [], seconds)
        result = CAUGHT if passes.finished and passes.failed is None else FAILS_ANYWAY
    spent = round(time.monotonic() - start)
    return {"result": result, "test": ended.failed, "seconds": spent}


def run_tests(tree: Path, tests: Sequence[str], seconds: float) -> Ended:
    """Run `tests` in a fork of this process, which has imported what takes long, until one fails.

    Without tests nothing is run: then a file that can't even be collected was all that failed.
    """
    report = tree / "failed.txt"
    report.unlink(missing_ok=True)
    if not tests:
        return Ended(True, None)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        code = 1
        try:
            code = _in_child(tree, tests, report)
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            failed = report.read_text() if report.is_file() else None
            return Ended(code == 0, failed or (None if code == 0 else "the process"))
        time.sleep(0.2)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Ended(False, None)


def _in_child(tree: Path, tests: Sequence[str], report: Path) -> int:
    import pytest

    class Failures:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                note(report.nodeid)

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                note(f"{report.nodeid} can't be imported")

    def note(name: str) -> None:
        report.write_text(name, encoding="utf-8")

    os.chdir(tree)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        del sys.modules[name]
    sys.path[:0] = [str(tree / "src"), str(tree / "packages" / "smollm2"), str(tree)]
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--timeout=120"]
    return int(pytest.main([*options, f"--rootdir={tree}", *tests], plugins=[Failures()]))


def copy_tree(folder: Path) -> Path:
    """Copy all files that git knows of, so that the tree that people work in is never changed."""
    for name in _git("ls-files").splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the counts of each room and kind, and every change that wasn't caught, as Markdown."""
    lines = ["| | caught | of |", "|---|---|---|"]
    groups = {
        **{room: [row for row in rows if f"/{room}/" in row["file"]] for room in ROOMS},
        **{kind: [row for row in rows if row["kind"] == kind] for kind in KINDS},
        "all": list(rows),
    }
    for name, group in groups.items():
        if group:
            caught = sum(row["result"] == CAUGHT for row in group)
            lines.append(f"| {name} | {caught} | {len(group)} |")
    lines += ["", *(f"- {_line(row)}" for row in rows if row["result"] != CAUGHT)]
    return "\n".join(lines).rstrip() + "\n"


def _line(row: dict[str, Any]) -> str:
    before, after = (" ".join(row[side].split()) for side in ("before", "after"))
    by = f", by {row['test']}" if row["test"] else ""
    where = f"{row['file']}:{row['line']}"
    return f"{row['result']}: {where}, `{before}` became `{after}`{by} ({row['seconds']} s)"


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
