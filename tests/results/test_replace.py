"""A run's results take the place of an earlier run's whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerlens.results import FEATURES, STEERING
from steerlens.results.folder import changed_settings, unfinished
from steerlens.results.replace import ASIDE, replacing, written_files
from steerlens.results.status import Status
from steerlens.storage.files import write_json
from tests.support.frames import frame

REPORT = "# model\n\n![by layer](figures/by_layer.png)\n"


def save_results(folder: Path, layers: list[int]) -> None:
    FEATURES.write(frame(layers), folder)
    (folder / "report.md").write_text(REPORT)
    (folder / "summary.json").write_text(json.dumps({"study": {"tables": {"table1": []}}}))
    (folder / "table1.csv").write_text("method\n")
    (folder / "figures").mkdir(exist_ok=True)
    for end in ("png", "pdf"):
        (folder / "figures" / f"by_layer.{end}").write_text(f"{layers}")


def run(folder: Path, layers: list[int], fails: bool = False) -> None:
    with Status(folder) as status, replacing(status) as target:
        save_results(target, layers)
        if fails:
            raise ValueError("out of luck")


def run_to_its_second_layer(folder: Path) -> None:
    with Status(folder) as status, replacing(status) as target:
        status.expect(layers=8)
        FEATURES.write(frame([0, 1]), target)
        raise KeyboardInterrupt


def layers_in(folder: Path) -> set[int]:
    return set(FEATURES.read(folder)["layer"])


def test_a_failing_run_leaves_what_an_earlier_one_has_finished(tmp_path: Path) -> None:
    run(tmp_path, [1])
    (tmp_path / "figures" / "mine.png").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(ValueError, match="luck"):
            run(tmp_path, [2], fails=True)
        after = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
        status = tmp_path / "status.json"
        assert after | {status: b""} == before | {status: b""}
        told = unfinished(tmp_path)
        assert told is not None
        assert told.startswith("the last run failed (ValueError: out of luck); what is here is of")
    run(tmp_path, [3])
    assert layers_in(tmp_path) == {3}
    assert (tmp_path / "figures" / "by_layer.pdf").read_text() == "[3]"
    assert (tmp_path / "figures" / "mine.png").exists()
    assert not (tmp_path / ASIDE).exists()
    assert unfinished(tmp_path) is None


def test_only_what_was_written_is_removed_and_by_name(tmp_path: Path) -> None:
    run(tmp_path, [1])
    others = [tmp_path / "figures" / "mine.pdf", tmp_path / "mine.csv", tmp_path / "notes.md"]
    for path in others:
        path.touch()
    STEERING.write(STEERING.frame([]), tmp_path)
    assert {path.name for path in written_files(tmp_path)} == {
        *("features.parquet", "steering.parquet", "summary.json", "report.md", "table1.csv"),
        *("by_layer.png", "by_layer.pdf"),
    }
    with Status(tmp_path) as status, replacing(status) as target:
        FEATURES.write(frame([2]), target)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"features.parquet", "status.json", *(path.name for path in others)}


def test_what_a_first_run_has_is_there_after_its_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_to_its_second_layer(tmp_path)
    assert layers_in(tmp_path) == {0, 1}
    assert unfinished(tmp_path) == "unfinished: 2 of 8 layers; interrupted"
    with pytest.raises(ValueError, match="luck"), Status(tmp_path) as status, replacing(status):
        raise ValueError("no luck while loading")
    assert layers_in(tmp_path) == {0, 1}
    told = (
        "(ValueError: no luck while loading); what is here is of the run before, unfinished: 2 of"
    )
    assert told in str(unfinished(tmp_path))
    with pytest.raises(ValueError, match="luck"):
        run(tmp_path, [5], fails=True)
    assert layers_in(tmp_path) == {5}
    write_json(tmp_path / "status.json", {"state": "running", "pid": 2**22 + 1, "layers": 8})
    assert str(unfinished(tmp_path)).startswith("unfinished: 1 of 8 layers; its process")
    run(tmp_path, [3])
    assert layers_in(tmp_path) == {3}


def test_settings_that_change_results_are_told() -> None:
    old = {"layer": 3, "seed": 0, "judge": None, "score": {"factor": 5.0}, "paths": {"a": 1}}
    new = {"layer": 4, "seed": 0, "judge": {"name": "x"}, "score": {"factor": 7.0}, "paths": {}}
    assert changed_settings(old, new) == [
        *("judge=None (now x)", "layer=3 (now 4)", "score.factor=5.0 (now 7.0)")
    ]
