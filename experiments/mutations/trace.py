"""Which test calls which functions of the package, and what it costs, so that a change is shown to
the tests that can notice it alone, the cheapest of them first.

Every function of the package tells that it is called; all other code is run as it is, which a trace
function would slow down to half its speed.
"""

from __future__ import annotations

import ast
import builtins
import json
import resource
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

CALLED = "__steerlens_function_called__"


@dataclass
class TracedTest:
    """What a test that passes costs, its fixtures included, and which functions it calls."""

    seconds: float
    calls: list[int]
    """Positions in `Trace.functions`."""


@dataclass
class Trace:
    """The tests that pass, by their id, and the modules that they had imported in the end."""

    functions: list[str] = field(default_factory=list)
    """Each is a file below the traced folder, a colon, and the dotted name in it."""
    tests: dict[str, TracedTest] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    """Tests that don't pass as the code is: they can't notice a change."""
    modules: list[str] = field(default_factory=list)

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Trace:
        trace = cls(**json.loads(file.read_text(encoding="utf-8")))
        tests: dict[str, Any] = {**trace.tests}
        trace.tests = {name: TracedTest(**test) for name, test in tests.items()}
        return trace

    def callers(self, file: str, function: str = "") -> set[str]:
        """Return the tests that call a function of `file`, or any of it."""
        called = f"{file}:{function}"
        positions = {
            position
            for position, name in enumerate(self.functions)
            if name == called or (not function and name.startswith(called))
        }
        return {name for name, test in self.tests.items() if not positions.isdisjoint(test.calls)}

    def with_tests(self, other: Trace, names: Collection[str]) -> Trace:
        """Return this trace with those tests of `other` that are among `names`."""
        functions = [*self.functions, *other.functions]
        shift = len(self.functions)
        moved = {
            name: TracedTest(test.seconds, [shift + position for position in test.calls])
            for name, test in other.tests.items()
            if name in names
        }
        return Trace(functions, moved | self.tests, self.failed, self.modules)

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


def function_at(source: str, line: int) -> str:
    """Return the dotted name of the innermost function that has the line in it; "" where importing
    runs the line.
    """
    names = [
        name
        for name, node in _functions(ast.parse(source))
        if node.lineno <= line <= (node.end_lineno or line)
    ]
    return names[-1] if names else ""


def _functions(
    node: ast.AST, outer: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Give the functions inside `node`, each before those that are inside it."""
    for child in ast.iter_child_nodes(node):
        name = outer
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{outer}.{child.name}".lstrip(".")
            if not isinstance(child, ast.ClassDef):
                yield name, child
        yield from _functions(child, name)


class Tracer:
    """A plug-in of pytest that fills `trace` with the calls of functions below `source`.

    What a fixture calls, and what it costs, is counted for every test that uses it. Tests of
    `before`, a trace of an earlier commit, aren't run again: what it says of them is taken over.
    """

    def __init__(self, source: Path, before: Trace | None = None) -> None:
        self.trace = Trace()
        self._source = source
        self._before = before or Trace()
        self._collected: set[str] = set()
        self._calls: set[str] = set()
        self._fixture_seconds = 0.0
        self._of_fixture: dict[int, set[str]] = defaultdict(set)
        self._cost_of_fixture: dict[int, float] = defaultdict(float)
        self._of_test: dict[str, tuple[float, set[str], list[int]]] = {}
        self._passed: dict[str, bool] = {}

    def listen(self) -> None:
        """Have every function that is imported from now on tell when it is called."""
        compiled = SourceFileLoader.get_code
        setattr(builtins, CALLED, self._call)

        def get_code(loader: SourceFileLoader, fullname: str) -> CodeType | None:
            path = Path(loader.get_filename(fullname))
            if not path.is_relative_to(self._source):
                return compiled(loader, fullname)
            tree, file = ast.parse(path.read_bytes()), path.relative_to(self._source).as_posix()
            for name, node in [*_functions(tree)]:
                call = ast.parse(f"{CALLED}({f'{file}:{name}'!r})").body[0]
                node.body.insert(int(ast.get_docstring(node) is not None), call)
            return compile(tree, path, "exec", dont_inherit=True)

        SourceFileLoader.get_code = get_code  # type: ignore[method-assign]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._collected = {item.nodeid for item in items}
        items[:] = [item for item in items if item.nodeid not in self._before.tests]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start, self._fixture_seconds = cpu_seconds(), 0.0
        with self._recorded() as calls:
            yield
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
        of_test = {
            name: (
                seconds + sum(self._cost_of_fixture[fixture] for fixture in fixtures),
                calls.union(*(self._of_fixture[fixture] for fixture in fixtures)),
            )
            for name, (seconds, calls, fixtures) in self._of_test.items()
            if self._passed.get(name)
        }
        functions = sorted(set().union(*(calls for _, calls in of_test.values())))
        positions = {name: position for position, name in enumerate(functions)}
        tests = {
            name: TracedTest(round(seconds, 3), sorted(positions[call] for call in calls))
            for name, (seconds, calls) in of_test.items()
        }
        traced = Trace(functions, tests, self.trace.failed, sorted(sys.modules))
        self.trace = traced.with_tests(self._before, self._collected)

    @contextmanager
    def _recorded(self) -> Iterator[set[str]]:
        outer, self._calls = self._calls, set()
        yield self._calls
        outer |= self._calls
        self._calls = outer

    def _call(self, function: str) -> None:
        self._calls.add(function)


def cpu_seconds() -> float:
    """Return the seconds of processor time of this process and of those that it has waited for."""
    spent = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)
