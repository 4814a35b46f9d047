"""Names say what they hold: words that say nothing are rare among the package's identifiers."""

from __future__ import annotations

import ast
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
MOST_IN_1000 = 3


def identifiers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


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
