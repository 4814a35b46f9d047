from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from steerlens.errors import SteerlensError, Terminated
from steerlens.results import FEATURES
from steerlens.results.status import (
    SILENT,
    Status,
    begin,
    note_failure,
    now,
    read_status,
    refuse_foreign,
)
from tests.storage.test_files import on_a_full_disk
from tests.support.frames import frame


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
        monkeypatch.setattr("steerlens.results.status.write_json", full)
        raise SteerlensError("no space left to write features.parquet")
    assert read(tmp_path)["reason"] == "no space left to write features.parquet"


def test_a_run_that_filled_the_disk_has_failed_and_left_no_half_file(tmp_path: Path) -> None:
    code = """
from steerlens.results import FEATURES
from steerlens.results.status import Status
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


def gone_process() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def write(folder: Path, **status: Any) -> None:
    (folder / "status.json").write_text(json.dumps(status))


def test_a_run_whose_process_is_gone_has_died(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    here = {"state": "running", "started": now(), "host": socket.gethostname()}
    write(tmp_path, **here, pid=gone_process())
    assert read_status(tmp_path)["state"] == "died"
    write(tmp_path, **here, pid=os.getpid())
    assert read_status(tmp_path)["state"] == "running"
    write(tmp_path, **here | {"started": "2020-01-01T00:00:00Z"}, pid=os.getpid())
    assert read_status(tmp_path)["state"] == "died"  # the number is another process's by now
    write(tmp_path, **here | {"host": "another"}, pid=gone_process())
    assert read_status(tmp_path)["state"] == "running"  # it has given a sign of life
    with pytest.raises(SteerlensError, match="on another, which was alive in the last"):
        begin(tmp_path)
    os.utime(tmp_path / "status.json", (0, time.time() - SILENT - 1))
    assert read_status(tmp_path)["state"] == "died"


def test_a_run_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerlens.results.status.BEAT", 0.01)
    with Status(tmp_path):
        os.utime(tmp_path / "status.json", (0, 0))
        for _ in range(1000):
            if (tmp_path / "status.json").stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert time.time() - (tmp_path / "status.json").stat().st_mtime < SILENT


INSIDE = """
import sys, time
from pathlib import Path
from steerlens.results.status import Status
with Status(Path(sys.argv[1])):
    print("inside", flush=True)
    time.sleep(60)
"""


def test_only_one_run_at_a_time_gets_into_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INSIDE, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "inside\n"
        before = read(tmp_path)
        with (
            pytest.raises(SteerlensError, match=f"under way in .*process {child.pid}"),
            Status(tmp_path),
        ):
            pytest.fail("the block must not run")
        with pytest.raises(SteerlensError, match="under way"):
            begin(tmp_path, "a job's")
        note_failure(tmp_path, SteerlensError("no layer 99."))
        (tmp_path / "status.json").write_text("{}")  # as if both had begun at the same moment
        with pytest.raises(SteerlensError, match="under way"), Status(tmp_path):
            pytest.fail("the block must not run")
        write(tmp_path, **before)
    finally:
        child.kill()
        child.wait()
    assert read(tmp_path) == before
    assert read_status(tmp_path)["state"] == "died"
    with Status(tmp_path):
        pass
    assert read(tmp_path)["state"] == "done"


def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new")
    refuse_foreign(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "summary.json").write_text('{"mine": 1}')
    with pytest.raises(SteerlensError, match=r"isn't empty \(it holds figures, summary.json\)"):
        refuse_foreign(tmp_path)
    note_failure(tmp_path, SteerlensError("no layer 99."))
    assert not (tmp_path / "status.json").exists()
    write(tmp_path, state="failed")
    refuse_foreign(tmp_path)


def test_a_finished_runs_state_is_kept_while_its_tables_are_there(tmp_path: Path) -> None:
    with Status(tmp_path) as status:
        FEATURES.write(frame(), tmp_path)
        assert status.earlier is None
    ended = read(tmp_path)["finished"]
    for _ in range(2):
        with pytest.raises(ValueError, match="again"), Status(tmp_path) as status:
            raise ValueError("again")
        assert status.earlier is not None
        assert status.earlier["finished"] == ended
    assert read(tmp_path)["state"] == "failed"
    assert read(tmp_path)["earlier"]["state"] == "done"
    with Status(tmp_path) as status:
        status.replaced()
    assert "earlier" not in read(tmp_path)


def test_a_jobs_key_is_in_the_file_of_its_state(tmp_path: Path) -> None:
    begin(tmp_path, "key")
    assert read(tmp_path)["key"] == "key"
    with Status(tmp_path):
        pass
    assert (read(tmp_path)["state"], read(tmp_path)["key"]) == ("done", "key")
    with Status(tmp_path):  # a run that is no job
        pass
    assert "key" not in read(tmp_path)
