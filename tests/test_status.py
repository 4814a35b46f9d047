from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from steerlens.errors import SteerlensError, Terminated
from steerlens.status import Status
from tests.test_files import on_a_full_disk


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def test_a_run_is_running_and_then_done(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with Status(folder):
        assert read(folder) | {"started": ""} == {
            "state": "running",
            "started": "",
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
    assert read(folder)["state"] == "done"
    assert set(read(folder)) == {"state", "started", "finished"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SteerlensError("layer 9 is out of range;\n0 to 7."), "layer 9 is out of range; 0 to 7."),
        (ValueError("bad\nvalue"), "ValueError: bad value"),
        (MemoryError(), "MemoryError"),
        (SystemExit(2), "SystemExit: 2"),
    ],
)
def test_a_failure_is_recorded_and_goes_on(
    tmp_path: Path, error: BaseException, reason: str
) -> None:
    with pytest.raises(type(error)), Status(tmp_path):
        raise error
    assert read(tmp_path)["state"] == "failed"
    assert read(tmp_path)["reason"] == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [(KeyboardInterrupt(), "interrupted"), (Terminated(), "ended by SIGTERM")],
)
def test_what_was_ended_from_outside_is_interrupted(
    tmp_path: Path, error: BaseException, reason: str
) -> None:
    with pytest.raises(type(error)), Status(tmp_path):
        raise error
    assert read(tmp_path)["state"] == "interrupted"
    assert read(tmp_path)["reason"] == reason


def test_leaving_with_exit_code_0_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), Status(tmp_path):
        raise SystemExit(0)
    assert read(tmp_path)["state"] == "done"


def test_a_folder_that_vanished_does_not_hide_the_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="the real one"), Status(folder):  # noqa: PT012
        (folder / "status.json").unlink()
        folder.rmdir()
        raise ValueError("the real one")


def test_a_disk_that_filled_up_is_recorded_over_the_old_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: Any) -> None:
        raise SteerlensError("no space left")

    with pytest.raises(SteerlensError, match="no space"), Status(tmp_path):  # noqa: PT012
        monkeypatch.setattr("steerlens.status.write_json", full)
        raise SteerlensError("no space left to write features.parquet")
    assert read(tmp_path)["reason"] == "no space left to write features.parquet"


def test_a_run_that_filled_the_disk_has_failed_and_left_no_half_file(tmp_path: Path) -> None:
    code = """
from steerlens.results import FEATURES
from steerlens.status import Status
from tests.support.frames import frame
with Status(folder):
    FEATURES.write(frame(range(40), 100), folder)
"""
    done = on_a_full_disk(code, tmp_path)
    assert "SteerlensError: no space left to write" in done.stderr
    assert read(tmp_path)["state"] == "failed"
    assert "features.parquet" in read(tmp_path)["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_an_unwritable_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SteerlensError, match="can't write"), Status(tmp_path / "file" / "run"):
        pytest.fail("the block must not run")
