"""The architecture: rooms of the package in their order, and who may import from whom."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import steerlens

PACKAGE = Path(steerlens.__file__).parent
MOST_ROOMS = 14

MAY_IMPORT = {
    "errors": "",
    "storage": "errors",
    "config": "errors storage",
    "results": "errors storage config",
    "data": "errors storage config results",
    "engine": "errors storage config data",
    "scores": "errors config results data engine",
    "judges": "errors storage config results engine",
    "analysis": "errors config results scores",
    "steering": "errors storage config results data engine scores judges analysis",
    "report": "errors storage config results analysis",
    "runs": "errors storage config results data engine scores judges analysis steering report",
    "cli": "errors storage config results engine report runs",
}
"""By room, from the lowest to the highest, the rooms that it may import from."""
KNOW_RUNS = ("config", "runs", "cli")
"""The rooms that know a run's whole configuration: what defines it, and what carries it out."""


def imported_modules(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules


def room_of(module: str) -> str | None:
    """The room of a module of the package; None for other packages and the package's own names."""
    parts = module.split(".")
    return (
        parts[1] if parts[0] == "steerlens" and len(parts) > 1 and parts[1] in MAY_IMPORT else None
    )


def test_there_are_few_rooms_and_each_has_its_place_in_the_order() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir()} - {"__init__", "__main__", "__pycache__"}
    assert rooms == {*MAY_IMPORT, "earlier_names"}
    assert len(rooms) <= MOST_ROOMS


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_from_the_rooms_below_it_alone(room: str) -> None:
    below = list(MAY_IMPORT)[: list(MAY_IMPORT).index(room)]
    allowed = MAY_IMPORT[room].split()
    assert set(allowed) <= set(below)
    files = [*(PACKAGE / room).rglob("*.py"), *PACKAGE.glob(f"{room}.py")]
    assert files
    others = {
        (file.relative_to(PACKAGE).as_posix(), module)
        for file in files
        for module in imported_modules(file)
        if room_of(module) not in (None, room, *allowed)
    }
    assert not others
    used = {room_of(module) for file in files for module in imported_modules(file)}
    assert used - {None, room} == set(allowed), "the list says no more than what is there"


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if room not in KNOW_RUNS])
def test_below_runs_settings_are_parsed_ones(room: str) -> None:
    files = [*(PACKAGE / room).rglob("*.py"), *PACKAGE.glob(f"{room}.py")]
    naming = [file.name for file in files if "RunConfig" in file.read_text(encoding="utf-8")]
    assert not naming, "it is given what `config.settings` parses"


@pytest.mark.parametrize(
    ("earlier", "now", "name"),
    [
        ("logit_lens", "engine.logit_lens", "logit_lens"),
        ("concept_sets", "data.concept_sets", "Concept"),
        ("concept_sets.axbench", "data.concept_sets.axbench", "axbench_folder"),
    ],
)
def test_earlier_addresses_are_the_same_objects(earlier: str, now: str, name: str) -> None:
    old, new = (importlib.import_module(f"steerlens.{module}") for module in (earlier, now))
    assert getattr(old, name) is getattr(new, name)
