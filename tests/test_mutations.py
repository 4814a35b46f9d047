"""Changes that `experiments.mutations` makes are few tokens wide, compile, and are repeatable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import steerlens
from experiments.mutations.mutate import KINDS, choose, files_for, mutations

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
    counts[0] = total
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
    ("dropped line", "counts[0] = total", "pass"),
    ("constant", "0", "1"),
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


def test_the_mirror_comes_first_and_then_the_room() -> None:
    package, tests = Path(steerlens.__file__).parent, Path(__file__).parent
    files = files_for(package / "scores" / "output.py", package, tests)
    assert files[0] == tests / "scores" / "test_output.py"
    assert set(files) == set((tests / "scores").rglob("test_*.py"))
    inside = files_for(package / "engine" / "generation" / "__init__.py", package, tests)
    assert inside[0].parent == tests / "engine" / "generation"
