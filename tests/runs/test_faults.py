"""The script that disturbs commands: that it sees what is lost, and a short form of it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from random import Random

import pandas as pd
import pytest

from experiments.faults import disturb
from experiments.faults.run import difference, read_comparable

ROOT = Path(__file__).parents[2]


def save_results(folder: Path, numbers: list[float]) -> Path:
    folder.mkdir()
    pd.DataFrame({"x": numbers}).to_parquet(folder / "features.parquet")
    (folder / "summary.json").write_text("{}")
    return folder


def test_what_is_lost_is_seen(tmp_path: Path) -> None:
    expected = save_results(tmp_path / "expected", [1.0, 2.0])
    other = save_results(tmp_path / "other", [1.0, 2.0])
    assert difference(other, expected) is None
    (other / "summary.json").write_text("{ }")
    assert difference(other, expected) == "summary.json is another"
    (other / "summary.json").unlink()
    assert difference(other, expected) == "there is no summary.json"
    changed = save_results(tmp_path / "changed", [1.0, 2.0000000001])
    assert str(difference(changed, expected)).startswith("features.parquet: ")
    (changed / "features.parquet").rename(changed / "another.parquet")
    assert "is in one of the two alone" in str(difference(changed, expected))


def test_how_long_jobs_took_is_not_compared(tmp_path: Path) -> None:
    def texts(seconds: int, score: str) -> list[str]:
        report, table = tmp_path / "report.md", tmp_path / "sweep.csv"
        rows = f"| job | score | seconds |\n| --- | --- | --- |\n| 0 | {score} | {seconds} |\n"
        report.write_text(f"{rows}\n| a | b |\n| --- | --- |\n| 1 | {score} |\n")
        table.write_text(f'job,score,seconds,reason\n0,{score},{seconds},"a, b"\n')
        return [read_comparable(report), read_comparable(table)]

    assert texts(25, "0.5") == texts(26, "0.5")
    for of_half, of_other in zip(texts(25, "0.5"), texts(25, "0.6"), strict=True):
        assert of_half != of_other
    assert "b" in texts(25, "0.5")[0].split("\n")[4]


@pytest.mark.parametrize("how", disturb.DAMAGES)
def test_files_of_a_cache_are_damaged(how: str, tmp_path: Path) -> None:
    contents = {"scores/a/part-1.parquet": b"one" * 9, "scores/b/part-2.parquet": b"two" * 9}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
    groups = disturb.cache_groups(tmp_path)
    assert groups == {"scores/*.parquet": [Path(name) for name in contents]}
    disturb.damage(tmp_path, groups["scores/*.parquet"], how, Random(0))
    for name, content in contents.items():
        assert (tmp_path / name).read_bytes() != content


FULL = """
import sys
from pathlib import Path
from experiments.faults.disturb import full_from, noting_places
from steerlens.storage.files import write_text

folder, place = Path(sys.argv[1]), sys.argv[2]
(noting_places(folder, folder.parent / "notes") if place == "?" else full_from(place, folder))()
write_text(folder / "a", "x")
"""


def test_a_full_disk_is_one_from_a_place_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def write(place: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", FULL, str(folder), place]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    assert write("?").returncode == 0
    (place,) = set((tmp_path / "notes").read_text().splitlines())
    assert place.startswith("/storage/files.py:atomic_write < /storage/files.py:write_text")
    (folder / "a").unlink()
    ended = write(place)
    assert ended.returncode == 1
    assert "no space left to write" in ended.stderr
    assert f"[Errno {errno.ENOSPC}]" in ended.stderr
    assert list(folder.iterdir()) == []
    assert write("another place").returncode == 0


@pytest.mark.slow
def test_nothing_is_lost_in_a_short_form() -> None:
    command = [sys.executable, "-m", "experiments.faults.run", "--each", "1", "--minutes", "60"]
    command += ["--cases", "scores", "--kinds", "kill,rename,disk,cache,wandb"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| all | 5 | 5 | 0 | 0 |" in ended.stdout
