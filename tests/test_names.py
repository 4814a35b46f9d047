"""Names say what they hold: words that say nothing are rare among the package's identifiers."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import steerlens

EMPTY = frozenset(
    [
        "one",
        "ones",
        "own",
        "found",
        "known",
        "place",
        "kept",
        "keep",
        "said",
        "told",
        "asked",
        "wanted",
        "given",
        "thing",
        "things",
        "got",
        "shown",
        "made",
        "done",
        "seen",
        "taken",
        "left",
        "other",
        "others",
        "rest",
        "whole",
        "some",
        "what",
        "which",
        "there",
        "here",
        "stuff",
        "foo",
    ]
)
MOST_IN_1000 = 1


def identifiers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def explained_arguments(docstring: str) -> list[str]:
    """The names under `Args:`, which are indented once."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", docstring, re.M)
    return re.findall(r"^ {4}(\w+):", section[1], re.M) if section else []


def test_docstrings_explain_arguments_that_are_there() -> None:
    absent = []
    for file in sorted(Path(steerlens.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = {arg.arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)}
                explained = explained_arguments(ast.get_docstring(node) or "")
                absent += [f"{file.name}: {node.name}: {n}" for n in explained if n not in names]
    assert explained_arguments(
        "Do it.\n\nArgs:\n    x: a number,\n        or two.\n    y: z.\n"
    ) == ["x", "y"]
    assert not absent


def test_an_empty_name_is_counted() -> None:
    names = list(identifiers("def f(one):\n    found = one\n    return [_ for _ in found]\n"))
    assert [name for name in names if name in EMPTY] == ["one", "found", "one", "found"]


def test_identifiers_say_what_they_hold() -> None:
    n, empty = 0, Counter[str]()
    for file in sorted(Path(steerlens.__file__).parent.rglob("*.py")):
        names = list(identifiers(file.read_text(encoding="utf-8")))
        n += len(names)
        empty.update(f"{name} in {file.name}" for name in names if name.strip("_") in EMPTY)
    assert empty.total() <= MOST_IN_1000 * n / 1000, empty.most_common(10)
