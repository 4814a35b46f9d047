from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steerlens.errors import SteerlensError
from steerlens.storage.files import (
    atomic_write,
    has_byte_order_mark,
    json_text,
    json_values,
    make_folder,
    read_json,
    read_text,
    remove_leftovers,
    write_json,
    write_text,
)

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
folder = Path(sys.argv[1])
"""


def on_a_full_disk(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process whose files can't grow beyond 8 KiB."""
    command = [sys.executable, "-c", FULL_DISK + code, str(folder)]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=root
    )


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


KILLED = """
import os, sys
from pathlib import Path
from steerlens.storage.files import atomic_write
with atomic_write(Path(sys.argv[1]) / "part-1.parquet") as file:
    file.write(b"half")
    file.flush()
    os._exit(9)
"""


def test_what_a_killed_process_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    other = tmp_path / ".part-2.parquet.00000000.1.0123456789ab.tmp"  # another machine's
    mine = tmp_path / ".mine.tmp"
    for path in (other, mine):
        path.touch()
    with atomic_write(tmp_path / "part-3.parquet") as file:
        file.write(b"whole")
        remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {other.name, mine.name, "part-3.parquet"}
    os.utime(other, (0, 0))
    remove_leftovers(tmp_path)
    assert not left.exists()
    assert not other.exists()
    assert mine.exists()


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "old")
    code = """
from steerlens.errors import SteerlensError
from steerlens.storage.files import write_text
try:
    write_text(folder / "file.txt", "x" * 100_000)
except SteerlensError as error:
    print(error)
"""
    done = on_a_full_disk(code, tmp_path)
    assert "no space left to write" in done.stdout, done.stderr
    assert (tmp_path / "file.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_that_cannot_be_made_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SteerlensError, match=r"can't write .* choose another place"):
        make_folder(tmp_path / "file" / "run")
    with pytest.raises(SteerlensError, match="can't write"):
        write_text(tmp_path / "file" / "run" / "a.txt", "")


def test_written_files_are_readable_as_others_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_never_holds_nan_or_infinity(tmp_path: Path) -> None:
    value = {
        "nan": float("nan"),
        "list": [float("inf"), np.float32("nan"), np.int64(3), pd.NA],
        "array": np.array([1.0, -np.inf]),
        "path": Path("a"),
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    expected = {"nan": None, "list": [None, None, 3, None], "array": [1.0, None], "path": "a"}
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert json_text(value) == text


def test_a_broken_json_file_reads_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a":')
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "none.json") is None
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    assert read_json(deep) is None
    with pytest.raises(SteerlensError, match=r"is not valid JSON \(it is nested too deeply\)"):
        list(json_values(deep))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_texts_of_users_are_read_with_and_without_a_byte_order_mark(
    tmp_path: Path, encoding: str, packed: bool
) -> None:
    file = tmp_path / "a.txt"
    data = "é\u2028x\r\n漢".encode(encoding)
    file.write_bytes(gzip.compress(data) if packed else data)
    assert read_text(file) == "é\u2028x\n漢"
    if not packed:
        assert has_byte_order_mark(file) == (encoding != "utf-8")


def test_a_text_of_another_encoding_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a.txt")
