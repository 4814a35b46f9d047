"""What is read from a run's folder to show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from steerlens.config.schema import ChoiceConfig
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES, GENERATIONS, STEERING, TABLES
from steerlens.results.folder import CONFIG_FILE, TABLE_OF, RunTables, read_tables
from tests.support.frames import found_pmi, frame, generations, steering


def write(folder: Path, **settings: object) -> None:
    FEATURES.write(frame(), folder)
    if settings:
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(settings))


def test_a_folder_without_steering_has_empty_tables_of_it(tmp_path: Path) -> None:
    write(tmp_path)
    found = read_tables(tmp_path)
    assert len(found.features) == 36
    for table, frame_of_it in ((GENERATIONS, found.generations), (STEERING, found.steering)):
        assert frame_of_it.empty
        assert list(frame_of_it.columns) == list(table.columns)
    assert found.choice is None
    assert found.late_from is None
    assert found.operator is None
    assert found.pmi is None


def test_every_table_has_a_name_and_those_with_layers_are_chosen_by_layer() -> None:
    frames: dict[str, Any] = {name: table.frame([]) for name, table in TABLE_OF.items()}
    empty = RunTables(**frames)
    assert list(TABLE_OF.values()) == list(TABLES)
    for name, table in TABLE_OF.items():
        assert getattr(empty.of_layers([2]), name).columns.tolist() == [*table.columns]
    rows = frame()
    layer = min(rows["layer"].tolist())
    assert set(RunTables(rows).of_layers([layer]).features["layer"]) == {layer}


def test_all_tables_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    GENERATIONS.write(generations(), tmp_path)
    STEERING.write(steering(), tmp_path)
    found_pmi().write(tmp_path)
    found = read_tables(tmp_path)
    assert (len(found.generations), len(found.steering)) == (12 * 4 * 4, 12)
    assert found.pmi is not None
    assert len(found.pmi.pairs) == 30


@pytest.mark.parametrize(
    ("model", "late_from"),
    [
        ({"n_layers": 26, "late_from": None}, 16),
        ({"n_layers": 26, "late_from": 20}, 20),
        ({"n_layers": None, "late_from": 0}, 0),
        ({"n_layers": None, "late_from": None}, None),
        (None, None),
    ],
)
def test_the_first_late_layer_follows_from_the_settings(
    model: object, late_from: int | None, tmp_path: Path
) -> None:
    write(tmp_path, model=model)
    assert read_tables(tmp_path).late_from == late_from


def test_the_choice_is_that_of_the_settings_whatever_else_they_hold(tmp_path: Path) -> None:
    write(tmp_path, choice={"rule": "budget", "success_cap": 4.0, "of_another_version": 1})
    assert read_tables(tmp_path).choice == ChoiceConfig(rule="budget", success_cap=4.0)


def test_the_operator_is_that_of_the_settings(tmp_path: Path) -> None:
    write(tmp_path, steer={"operator": "ablate", "unit": "one"})
    assert read_tables(tmp_path).operator == "ablate"


def test_settings_that_are_no_yaml_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("a: [")
    with pytest.raises(SteerlensError, match=r"config\.yaml can't be read"):
        read_tables(tmp_path)
