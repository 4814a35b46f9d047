"""Changes that `experiments.mutations` makes are few tokens wide, compile, and are repeatable."""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import dedent

import pytest

import steerlens
from experiments.mutations import run
from experiments.mutations.mutate import KINDS, choose, mutations
from experiments.mutations.run import judge, trace_room
from experiments.mutations.trace import function_at

SOURCE = '''"""A docstring with 3 < 4."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    LIMIT = 9


def share(counts: list[int], é: float = 0.5, *, most: "int" = 2) -> dict[str, 4]:
    """Not 1."""
    total: int = 0
    for count, _ in zip(counts, counts, strict=True):
        if count not in (1, 2) and not count >= é:
            continue
        total += count
        print(f"{total + 1}")
    counts[0] = -(-total // limit)
    name = total
    if total == 0:
        raise ValueError("none")
    return (total) * 2 - 1.5 if True else name
'''
CHANGES = [
    ("constant", "0.5", "1.0"),
    ("constant", "2", "3"),
    ("constant", "0", "1"),
    ("comparison", "not in", "in"),
    ("constant", "1", "2"),
    ("constant", "2", "3"),
    ("operator", "and", "or"),
    ("operator", "not ", ""),
    ("comparison", ">=", ">"),
    ("dropped line", "continue", "pass"),
    ("dropped line", "total += count", "pass"),
    ("dropped line", 'print(f"{total + 1}")', "pass"),
    ("dropped line", "counts[0] = -(-total // limit)", "pass"),
    ("constant", "0", "1"),
    ("operator", "-", ""),
    ("operator", "-", ""),
    ("operator", "//", "*"),
    ("comparison", "==", "!="),
    ("constant", "0", "1"),
    ("dropped line", 'raise ValueError("none")', "pass"),
    ("operator", "*", "/"),
    ("constant", "2", "3"),
    ("operator", "-", "+"),
    ("constant", "1.5", "3.0"),
    ("constant", "True", "False"),
]


def test_every_change_is_listed_once_in_order() -> None:
    found = mutations(SOURCE)
    assert [(change.kind, change.before, change.after) for change in found] == CHANGES
    lines = SOURCE.splitlines()
    assert all(change.before.split("\n")[0] in lines[change.line - 1] for change in found)


def test_a_change_is_made_where_it_is_and_nowhere_else() -> None:
    for change in mutations(SOURCE):
        changed = change.apply(SOURCE)
        ast.parse(changed)
        assert changed != SOURCE
        text = SOURCE.encode()
        assert changed.encode()[: change.start] == text[: change.start]
        assert changed.encode().endswith(text[change.stop :])
        assert len(changed.encode()) - len(text) == len(change.after) - len(change.before)


def test_choosing_is_the_same_for_a_seed_and_takes_kinds_in_turns(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.py", "b.py")]
    for file in files:
        file.write_text(SOURCE, encoding="utf-8")
    chosen = choose(files, 12, "abc")
    assert chosen == choose(files[::-1], 12, "abc") != choose(files, 12, "abd")
    assert len(set(chosen)) == 12
    kinds = [change.kind for _, change in chosen]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 3)
    assert len(choose(files, 1000, "abc")) == 2 * len(CHANGES)


@pytest.mark.parametrize("room", ["engine", "scores", "steering", "analysis"])
def test_changes_of_the_package_compile(room: str) -> None:
    package = Path(steerlens.__file__).parent
    for file, change in choose(sorted((package / room).rglob("*.py")), 40, "0"):
        compile(change.apply(file.read_text(encoding="utf-8")), str(file), "exec")


def test_the_innermost_function_of_a_line_is_named() -> None:
    source = "N = 1\nclass Row:\n    n = 2\n    def of(self):\n        def f():\n            pass\n"
    source += "        return f\n"
    names = [function_at(source, line) for line in range(1, 8)]
    assert names == ["", "", "", "Row.of", "Row.of.f", "Row.of.f", "Row.of"]


TESTS = {
    "conftest.py": """
        import pytest
        from package.room.code import made

        @pytest.fixture(scope="module")
        def five():
            return made(5)
        """,
    "test_code.py": """
        import pytest
        from package.room import code

        def test_first(five):
            assert five == [0, 1, 2, 3, 4]

        def test_second(five):
            assert len(five) == 5

        @pytest.mark.parametrize("n", [1, 2])
        def test_half(n):
            assert code.half(2 * n) == n

        def test_broken():
            assert code.half(1) == 1

        def test_limit():
            assert code.LIMIT == 3
        """,
}
CODE = """
    LIMIT = 3


    def made(n):
        i, numbers = 0, []
        while i != n:
            numbers.append(i)
            i += 1
        return numbers


    def half(n):
        return n / 2 if n != 7 else 3.5


    def uncalled(n):
        return n + 1
    """
FILE = Path("src", "package", "room", "code.py")
RESULTS = {
    (2, "3"): ("caught", 5),  # of a constant all tests of the file are asked
    (8, "numbers.append(i)"): ("caught", 2),  # also by the test that has the fixture from another
    (9, "i += 1"): ("caught", 2),  # it never ends
    (14, "7"): ("survived", 2),
    (18, "+"): ("no test calls it", 0),
}


@pytest.mark.slow
def test_a_change_is_shown_to_the_tests_that_call_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = {Path("tests", "room", name): text for name, text in TESTS.items()}
    for name, text in {FILE: CODE, **tests}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(dedent(text), encoding="utf-8")
    trace = trace_room(tmp_path, "room", tmp_path / "trace.json")
    path = "tests/room/test_code.py::"
    passing = ["test_first", "test_second", "test_half[1]", "test_half[2]", "test_limit"]
    assert set(trace.tests) == {path + name for name in passing}
    assert trace.failed == [f"{path}test_broken"]

    monkeypatch.setattr(run, "ENDLESS", 1)
    results = {}
    for change in mutations((tmp_path / FILE).read_text(encoding="utf-8")):
        if (change.line, change.before) in RESULTS:
            row = judge(tmp_path, FILE, change, trace, seconds=2)
            results[change.line, change.before] = (row["result"], row["n_tests"])
    assert results == RESULTS
