"""The figures by which the package's structure is judged.

From the top of the repository, without importing the package:

    python -m experiments.structure [--helpers]

Rooms at the top, who imports from whom, the longest files, and private helpers with one caller and
at most four lines (`--helpers` lists them): those whose names explain nothing go back where they
are used. A function that is passed on, or left to subclasses, can't, and is no helper here.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "src" / "steerlens"
LINES = 4
"""Of a small helper's body, its docstring apart."""
NOT_HERE = "raise NotImplementedError"
"""The body of what subclasses do."""


class Helper(NamedTuple):
    """A private function that its module calls once, and mentions nowhere else."""

    file: Path
    line: int
    name: str
    n_lines: int


def small_helpers(file: Path) -> Iterator[Helper]:
    """Yield the private functions of a module that it only calls once, of at most `LINES` lines."""
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue
        is_private = node.name.startswith("_") and not node.name.endswith("__")
        body = node.body[1:] if ast.get_docstring(node) else node.body
        is_called = bool(called & {node.name, f"self.{node.name}", f"cls.{node.name}"})
        if not (is_private and body and is_called) or ast.unparse(body[0]) == NOT_HERE:
            continue
        n_lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
        if n_lines <= LINES and len(re.findall(rf"\b{node.name}\b", source)) == 2:
            yield Helper(file, node.lineno, node.name, n_lines)


def arrows() -> set[tuple[str, str]]:
    """Return which room imports from which other one."""
    pairs: set[tuple[str, str]] = set()
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, rest = node.module.partition(".")
                other = rest.partition(".")[0]
                if package == "steerlens" and other and other != room:
                    pairs.add((room, other))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of the package's structure.")
    parser.add_argument("--helpers", action="store_true", help="list the small helpers")
    args = parser.parse_args()
    rooms = {path.stem for path in PACKAGE.iterdir()} - {"__init__", "__main__", "__pycache__"}
    files = sorted(PACKAGE.rglob("*.py"))
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in files}
    helpers = [helper for file in files for helper in small_helpers(file)]
    print(f"{len(rooms)} rooms, {len(arrows())} imports of one room from another")
    print(f"{len(files)} files; the longest:")
    for file in sorted(files, key=lambda file: -lines[file])[:5]:
        print(f"  {lines[file]} lines {file.relative_to(PACKAGE).as_posix()}")
    print(f"{len(helpers)} private helpers with one caller and at most {LINES} lines")
    for helper in helpers if args.helpers else []:
        path = helper.file.relative_to(PACKAGE).as_posix()
        print(f"  {path}:{helper.line} {helper.name}, {helper.n_lines} lines")


if __name__ == "__main__":
    main()
