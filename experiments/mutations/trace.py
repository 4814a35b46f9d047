"""Which test calls which functions of the package, and what it costs, so that a change is shown to
the tests that can notice it alone, the cheapest of them first."""

from __future__ import annotations

import inspect
import json
import os
import resource
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest


class Span(NamedTuple):
    """The lines of a function: its file below the traced folder, its first and its last line."""

    file: str
    first: int
    last: int


@dataclass
class TracedTest:
    """What a test that passes costs, its fixtures included, and which functions it calls."""

    seconds: float
    calls: list[int]
    """Positions in `Trace.spans`."""


@dataclass
class Trace:
    """The tests that pass, by their id, and the modules that they had imported in the end."""

    spans: list[Span] = field(default_factory=list)
    tests: dict[str, TracedTest] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    """Tests that don't pass as the code is: they can't notice a change."""
    modules: list[str] = field(default_factory=list)

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Trace:
        trace = cls(**json.loads(file.read_text(encoding="utf-8")))
        trace.spans = [Span(*span) for span in trace.spans]
        trace.tests = {name: TracedTest(**test) for name, test in trace.tests.items()}  # type: ignore[arg-type]
        return trace

    def callers(self, file: str, line: int | None = None) -> set[str]:
        """Return the tests that call a function of `file` that has `line` in it, or any of it."""
        spans = {
            position
            for position, span in enumerate(self.spans)
            if span.file == file and (line is None or span.first <= line <= span.last)
        }
        return {name for name, test in self.tests.items() if not spans.isdisjoint(test.calls)}

    def in_order(self, names: set[str], mirror: str) -> list[str]:
        """Sort tests: one case of each test first; file by file, those of the file `mirror` first,
        then the cheapest."""
        cases: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names, key=lambda name: (self.tests[name].seconds, name)):
            cases[name.partition("[")[0]].append(name)
        first_cases = [every[0] for every in cases.values()]
        repeated = [name for every in cases.values() for name in every[1:]]
        return [*self._by_file(first_cases, mirror), *self._by_file(repeated, mirror)]

    def _by_file(self, names: list[str], mirror: str) -> list[str]:
        def seconds(name: str) -> float:
            return self.tests[name].seconds

        files: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names, key=seconds):
            files[name.partition("::")[0]].append(name)
        order = sorted(files, key=lambda file: (file != mirror, seconds(files[file][0]), file))
        return [name for file in order for name in files[file]]


class Tracer:
    """A plug-in of pytest that fills `trace` with the calls of functions below `source`.

    What a fixture calls, and what it costs, is counted for every test that uses it.
    """

    def __init__(self, source: Path) -> None:
        self.trace = Trace()
        self._prefix = f"{source}{os.sep}"
        self._codes: dict[int, CodeType] = {}  # by id: a code object's hash reads all of it
        self._calls: set[int] = set()
        self._fixture_seconds = 0.0
        self._of_fixture: dict[int, set[int]] = defaultdict(set)
        self._cost_of_fixture: dict[int, float] = defaultdict(float)
        self._of_test: dict[str, tuple[float, set[int], list[int]]] = {}
        self._passed: dict[str, bool] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start, self._fixture_seconds = cpu_seconds(), 0.0
        with self._recorded() as calls:
            sys.settrace(self._on_call)
            yield
            sys.settrace(None)
        definitions = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
        fixtures = [id(definition) for every in definitions for definition in every]
        seconds = cpu_seconds() - start - self._fixture_seconds
        self._of_test[item.nodeid] = (seconds, calls, fixtures)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        start = cpu_seconds()
        with self._recorded() as calls:
            yield
        self._of_fixture[id(fixturedef)] |= calls
        if fixturedef.scope != "function":
            spent = cpu_seconds() - start
            self._fixture_seconds += spent
            self._cost_of_fixture[id(fixturedef)] = spent

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._passed[report.nodeid] = report.passed
        if report.failed:
            self.trace.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.trace.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        spans = {number: self._span(code) for number, code in self._codes.items()}
        self.trace.spans = sorted(set(spans.values()))
        positions = {span: position for position, span in enumerate(self.trace.spans)}
        for name, (seconds, calls, fixtures) in self._of_test.items():
            if self._passed.get(name):
                every = calls.union(*(self._of_fixture[fixture] for fixture in fixtures))
                seconds += sum(self._cost_of_fixture[fixture] for fixture in fixtures)
                called = sorted({positions[spans[number]] for number in every})
                self.trace.tests[name] = TracedTest(round(seconds, 3), called)
        self.trace.modules = sorted(sys.modules)

    @contextmanager
    def _recorded(self) -> Iterator[set[int]]:
        outer, self._calls = self._calls, set()
        yield self._calls
        outer |= self._calls
        self._calls = outer

    def _on_call(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if code.co_filename.startswith(self._prefix) and code.co_flags & inspect.CO_OPTIMIZED:
            self._codes[id(code)] = code  # no module and no class: those run when imported
            self._calls.add(id(code))

    def _span(self, code: CodeType) -> Span:
        lines = [line for _, _, line in code.co_lines() if line is not None]
        file = Path(code.co_filename[len(self._prefix) :]).as_posix()
        return Span(file, code.co_firstlineno, max(lines))


def cpu_seconds() -> float:
    """Return the seconds of processor time of this process and of those that it has waited for."""
    spent = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)
