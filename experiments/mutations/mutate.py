"""Small changes of Python source that a test should notice: operators, comparisons, constants, and
lines that are left out."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

Kind = Literal["operator", "comparison", "constant", "dropped line"]
KINDS: tuple[Kind, ...] = ("operator", "comparison", "constant", "dropped line")

OPERATORS: dict[type, tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
COMPARISONS: dict[type, tuple[str, str]] = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}


@dataclass(frozen=True)
class Mutation:
    """`source[start:stop]`, in bytes of UTF-8, becomes `after`."""

    kind: Kind
    line: int
    start: int
    stop: int
    before: str
    after: str

    def apply(self, source: str) -> str:
        """Return `source` with the change in it."""
        text = source.encode()
        return (text[: self.start] + self.after.encode() + text[self.stop :]).decode()


def mutations(source: str) -> list[Mutation]:
    """Find all changes of `source`, in order; none in annotations, imports for types, or texts."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return sorted(finder.mutations, key=lambda mutation: (mutation.start, mutation.stop))


def choose(files: list[Path], n: int, seed: str) -> list[tuple[Path, Mutation]]:
    """Choose `n` changes of `files`, as many of each kind as there can be; the same for a seed."""
    draw = Random(seed)
    of_kind: dict[Kind, list[tuple[Path, Mutation]]] = {kind: [] for kind in KINDS}
    for file in sorted(files):
        for mutation in mutations(file.read_text(encoding="utf-8")):
            of_kind[mutation.kind].append((file, mutation))
    for every in of_kind.values():
        draw.shuffle(every)
    chosen: list[tuple[Path, Mutation]] = []
    while len(chosen) < n and any(of_kind.values()):
        chosen += [every.pop() for every in of_kind.values() if every]
    return chosen[:n]


class _Finder(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self.mutations: list[Mutation] = []
        self._text = source.encode()
        lengths = [len(line) for line in self._text.splitlines(keepends=True)]
        self._starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._swap(OPERATORS, "operator", node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap(OPERATORS, "operator", node.op, left, right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        word = {ast.Not: "not ", ast.USub: "-"}.get(type(node.op))
        if word is not None:  # a bracket may follow, which isn't the operand's
            self._add("operator", self._start(node), self._start(node) + len(word), "")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, node.comparators, strict=False):
            self._swap(COMPARISONS, "comparison", op, left, right)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            after = str(not value)
        elif isinstance(value, int):
            after = str(value + 1)
        elif isinstance(value, float):
            after = repr(2 * value if value else 1.0)
        else:
            return
        self._add("constant", self._start(node), self._stop(node), after)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._drop(node)
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._drop(node)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not isinstance(node.targets[0], (ast.Name, ast.Tuple)):  # a name would just be missing
            self._drop(node)
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._drop(node)  # what it says is a text

    def visit_Break(self, node: ast.Break) -> None:
        self._drop(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._drop(node)

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # of `zip`: all are as long as they should be
            self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        """Leave annotations as they are."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        node.returns = None
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave texts as they are."""

    def _swap(
        self,
        table: dict[type, tuple[str, str]],
        kind: Kind,
        op: ast.AST,
        left: ast.expr,
        right: ast.expr,
    ) -> None:
        if type(op) not in table:
            return
        before, after = table[type(op)]
        between = self._text[self._stop(left) : self._start(right)].decode()
        start = self._stop(left) + len(between[: between.index(before)].encode())
        self._add(kind, start, start + len(before), after)

    def _drop(self, node: ast.stmt) -> None:
        self._add("dropped line", self._start(node), self._stop(node), "pass")

    def _add(self, kind: Kind, start: int, stop: int, after: str) -> None:
        line = self._text[:start].count(b"\n") + 1
        before = self._text[start:stop].decode()
        self.mutations.append(Mutation(kind, line, start, stop, before, after))

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def _stop(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._starts[node.end_lineno - 1] + node.end_col_offset
