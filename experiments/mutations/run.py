"""Which small changes of the code the tests notice.

Chooses changes of `engine`, `scores`, `steering` and `analysis` (operators, comparisons,
constants, lines that are left out) by a seed that is the commit's hash, makes each in a copy of the
commit, and runs the room's tests that call the changed function, until one fails:

    python -m experiments.mutations.run [--n 60] [--room scores] [--seconds 120] [--commit HASH]

Which test calls what is traced first, by running the tests of each room once. A change counts as
caught if a test fails that passes without it, or doesn't come to an end. What is finished is in
`--out`, and the same command goes on from there. `--again LOG` tries the changes of an earlier
log again on this commit, where their lines are still there: all that weren't caught, and `--n` of
the others. Prints a table; the exit code is 1 if fewer than 90 % are caught.
"""

from __future__ import annotations

import argparse
import compileall
import gc
import importlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any, NamedTuple

import pytest

from experiments.mutations.mutate import KINDS, Mutation, choose, mutations
from experiments.mutations.trace import Trace, Tracer, cpu_seconds, function_at

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path("src", "steerlens")
ROOMS = ("analysis", "scores", "steering", "engine")
SHARE = 0.9
"""Of the changes that must be caught."""
CAUGHT, SURVIVED, UNCALLED = "caught", "survived", "no test calls it"
UNFINISHED, FAILS_ANYWAY = "survived until time was over", "fails without it, too"
IMPORTS = ("numpy", "pandas", "torch", "transformers", "transformer_lens", "sae_lens", "hydra")
"""What nearly every test imports, before it is known what else they do."""
OWN = ("steerlens", "steerlens_smollm2", "tests", "experiments", "pytest", "_pytest", "__main__")
"""What is imported anew for every change; all else that the tests import, their forks have."""
TRACE_SECONDS = 3600
MEMORY = 8 * 2**30
"""Bytes that a test's process may map, beside those of the process that it is forked from."""
ENDLESS = 10
"""Times what a test takes without the change, and as many seconds: then it doesn't end."""


class Ended(NamedTuple):
    """Whether all tests came to their end, and which failed (or never ended)."""

    finished: bool
    failed: str | None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=60)
    of_rooms = "of what is chosen only that; default: all four"
    parser.add_argument("--room", choices=ROOMS, action="append", help=of_rooms)
    seconds = "of processor time for each change, at most"
    parser.add_argument("--seconds", type=int, default=120, help=seconds)
    parser.add_argument("--commit", default="HEAD", help="what is changed, with its tests")
    parser.add_argument("--again", type=Path, metavar="LOG", help="changes of an earlier log")
    since = "a commit whose traces are taken over for the tests that it had"
    parser.add_argument("--since", default="", metavar="COMMIT", help=since)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "mutations")
    args = parser.parse_args()
    commit = _git("rev-parse", f"{args.commit}^{{commit}}").decode().strip()
    rooms = args.room or ROOMS
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"{args.again.stem}-again-{commit[:12]}" if args.again else commit[:12]
    log = args.out / f"{name}.jsonl"
    done = {_key(row): row for row in _rows(log) if row["result"] in (CAUGHT, SURVIVED, UNCALLED)}
    rows = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = copy_commit(commit, Path(folder))
        sources = [file for room in ROOMS for file in (tree / PACKAGE / room).rglob("*.py")]
        if args.again:
            chosen, gone = _again(_rows(args.again), tree, args.n, commit)
            print(f"{gone} of the log are no longer there", flush=True)
        else:
            chosen = choose(sources, args.n, commit)
        os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}  # as `tests/conftest.py`
        _import(IMPORTS)
        for room in rooms:
            traces = [args.out / f"{of[:12]}-{room}.trace.json" for of in (commit, args.since)]
            trace = trace_room(tree, room, *traces)
            for file, mutation in chosen:
                relative = file.relative_to(tree)
                if not relative.is_relative_to(PACKAGE / room):
                    continue
                text = _line_of(file, mutation)
                row = {"file": relative.as_posix(), "text": text, **asdict(mutation)}
                if _key(row) not in done:
                    row |= judge(tree, relative, mutation, trace, args.seconds)
                    with log.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(_line(row), flush=True)
                rows.append(done.get(_key(row), row))
    text = table(rows)
    log.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    sys.exit(sum(row["result"] == CAUGHT for row in rows) < SHARE * len(rows))


def trace_room(tree: Path, room: str, kept_in: Path, earlier: Path | None = None) -> Trace:
    """Return which tests of the room call what, from `kept_in` if they have been traced before.

    Tests that an `earlier` trace knows aren't traced anew.
    """
    if not kept_in.is_file():
        before = Trace.load(earlier) if earlier is not None and earlier.is_file() else None
        tracer = Tracer(tree / "src", before)

        def run() -> int:
            tracer.listen()
            code = _pytest(tree, [str(tree / "tests" / room)], tracer)
            tracer.trace.save(kept_in)
            return code

        _fork(run, TRACE_SECONDS)
    trace = Trace.load(kept_in)
    _import(name for name in trace.modules if name.partition(".")[0] not in OWN)
    print(f"{room}: {len(trace.tests)} tests; as it is, these fail: {trace.failed}", flush=True)
    return trace


def tests_of(trace: Trace, tree: Path, file: Path, mutation: Mutation) -> list[str]:
    """Return the tests that can notice a change of `file`, a path below `tree`, in their order.

    They call the function that is changed. What runs on import is noticed by those that call
    anything of the file, and then by those that call anything of a file that imports from it.
    """
    below = file.relative_to("src").as_posix()
    mirror = Path("tests", *file.parent.parts[2:], f"test_{file.stem}.py").as_posix()
    source = (tree / file).read_text(encoding="utf-8")
    if function := function_at(source, mutation.line):
        return trace.in_order(trace.callers(below, function), mirror)
    nearest = trace.callers(below) | {name for name in trace.tests if name.startswith(mirror)}
    module = ".".join(file.relative_to("src").with_suffix("").parts).removesuffix(".__init__")
    package, _, name = module.rpartition(".")
    importers: set[str] = set()
    for path in (tree / PACKAGE).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if f"from {module} import" in text or f"from {package} import {name}" in text:
            importers |= trace.callers(path.relative_to(tree / "src").as_posix())
    return [*trace.in_order(nearest, mirror), *trace.in_order(importers - nearest, mirror)]


def judge(tree: Path, file: Path, mutation: Mutation, trace: Trace, seconds: int) -> dict[str, Any]:
    """Return whether a test of `tree` fails with `mutation` and passes without it, and which."""
    mutated = tree / file
    source = mutated.read_text(encoding="utf-8")
    start = cpu_seconds()
    tests = tests_of(trace, tree, file, mutation)
    mutated.write_text(mutation.apply(source), encoding="utf-8")
    try:
        ended = run_tests(tree, tests, trace, seconds)
    finally:
        mutated.write_text(source, encoding="utf-8")
    result = SURVIVED if ended.finished else UNFINISHED
    if not tests:
        result = UNCALLED
    elif ended.failed is not None:
        alone = [ended.failed] if ended.failed in trace.tests else tests[:1]
        passes = run_tests(tree, alone, trace, seconds)
        result = CAUGHT if passes.finished and passes.failed is None else FAILS_ANYWAY
    spent = round(cpu_seconds() - start)
    return {"result": result, "test": ended.failed, "n_tests": len(tests), "seconds": spent}


def run_tests(tree: Path, tests: Sequence[str], trace: Trace, seconds: int) -> Ended:
    """Run `tests`, by their ids and in that order, until one fails or their `seconds` are over."""
    if not tests:
        return Ended(True, None)
    report = tree / "tests.jsonl"
    report.unlink(missing_ok=True)
    files = [str(tree / file) for file in dict.fromkeys(test.partition("::")[0] for test in tests)]
    code = _fork(lambda: _pytest(tree, ["-x", *files], InOrder(tests, report)), seconds)
    lines = _rows(report)
    failed = next((line["failed"] for line in lines if "failed" in line), None)
    if failed is not None or code == 0:
        return Ended(True, failed)
    last, started = (lines[-1]["started"], lines[-1]["at"]) if lines else (tests[0], 0.0)
    if code != -signal.SIGXCPU:
        return Ended(True, last)  # the process ended with it
    endless = seconds - started > ENDLESS * (1 + trace.tests[last].seconds)
    return Ended(False, last if endless else None)


class InOrder:
    """A plug-in of pytest that runs `tests` alone, in that order, and writes what failed."""

    def __init__(self, tests: Sequence[str], report: Path) -> None:
        self._position = {name: position for position, name in enumerate(tests)}
        self._report = report

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid in self._position]
        items.sort(key=lambda item: self._position[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(started=nodeid, at=cpu_seconds())

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._write(failed=report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._write(failed=f"{report.nodeid} can't be imported")

    def _write(self, **line: object) -> None:
        with self._report.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def copy_commit(commit: str, folder: Path) -> Path:
    """Unpack the commit, so that the tree that people work in is neither read nor changed.

    What is compiled of it is checked by its text: a file changes twice within a second.
    """
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
        archive.extractall(folder, filter="data")
    mode = PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / PACKAGE, quiet=2, invalidation_mode=mode)
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


def _again(
    rows: Sequence[dict[str, Any]], tree: Path, n: int, seed: str
) -> tuple[list[tuple[Path, Mutation]], int]:
    """Return the changes of `rows` that weren't caught and `n` of the others as they are in `tree`,
    and how many of them are no longer there."""
    latest = list({_key(row): row for row in rows}.values())
    caught = [row for row in latest if row["result"] == CAUGHT]
    others = [row for row in latest if row["result"] != CAUGHT]
    wanted = others + random.Random(seed).sample(caught, min(n, len(caught)))
    chosen = []
    for row in wanted:
        file = tree / row["file"]
        same = [
            mutation
            for mutation in (mutations(file.read_text(encoding="utf-8")) if file.is_file() else ())
            if (_line_of(file, mutation), mutation.before, mutation.after)
            == (row["text"], row["before"], row["after"])
        ]
        if same:
            chosen.append((file, min(same, key=lambda each: abs(each.start - row["start"]))))
    return chosen, len(wanted) - len(chosen)


def _fork(run: Callable[[], int], seconds: int) -> int:
    """Call `run` in a fork of this process, which has imported what takes long, and return its exit
    code; after `seconds` of processor time it is killed by SIGXCPU."""
    child = os.fork()
    if not child:
        code = 1
        try:
            gc.freeze()  # pytest's collections at its end would copy the parent's whole heap
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = run()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _pytest(tree: Path, words: Sequence[str], plugin: object) -> int:
    os.chdir(tree)
    folders = [str(tree / "src"), str(tree / "packages" / "smollm2"), str(tree)]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    sys.path[:0] = folders
    # By time and size, a file that is changed and put back within a second is the same.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        del sys.modules[name]  # the tests import the copy's
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider"]
    options += [f"--rootdir={tree}", f"--basetemp={tree / 'tmp'}"]
    return int(pytest.main([*options, *words], plugins=[plugin]))


def _import(modules: Iterable[str]) -> None:
    for name in modules:
        if name not in sys.modules:
            with suppress(Exception):  # some are put together while another is imported
                importlib.import_module(name)


def _rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def _key(row: dict[str, Any]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("file", "start", "stop", "before", "after"))


def _line_of(file: Path, mutation: Mutation) -> str:
    return file.read_text(encoding="utf-8").split("\n")[mutation.line - 1].strip()


def _line(row: dict[str, Any]) -> str:
    before, after = (" ".join(row[side].split()) for side in ("before", "after"))
    by = f", by {row['test']}" if row["test"] else f", {row['n_tests']} tests"
    where = f"{row['file']}:{row['line']}"
    return f"{row['result']}: {where}, `{before}` became `{after}`{by} ({row['seconds']} s)"


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True).stdout


if __name__ == "__main__":
    main()
