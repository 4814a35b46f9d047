"""Finished scores are found again, and only what is missing is computed."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, save

from steerlens.storage.seal import with_digest, without_digest
from steerlens.storage.store import Store, merged


def table(*features: int, value: float = 1.0) -> pa.Table:
    return pa.table({"feature": list(features), "x": [value * one for one in features]})


def test_what_was_added_is_found_under_its_key_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.read({"a": 1}) is None
    store.add({"a": 1}, table(3, 1))
    store.add({"a": 1}, table(7))
    found = Store(tmp_path).read({"a": 1})
    assert found is not None
    assert found.to_pydict() == {"feature": [1, 3, 7], "x": [1.0, 3.0, 7.0]}
    assert store.read({"a": 2}) is None


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add({"a": 1, "b": {"c": 2, "d": 3}}, table(1))
    assert store.read({"b": {"d": 3, "c": 2}, "a": 1}) is not None


def test_a_broken_part_counts_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add({"a": 1}, table(1))
    store.add({"a": 1}, table(2))
    part = next(store.folder({"a": 1}).glob("part-*"))
    part.write_bytes(part.read_bytes()[:30])
    found = store.read({"a": 1})
    assert found is not None
    assert found.num_rows == 1
    assert not part.exists()


def test_short_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    store = Store(tmp_path)
    store.add({"a": 1}, table(1))
    with monkeypatch.context() as patch:
        patch.setattr(pq, "read_table", fails)
        with pytest.raises(MemoryError):
            store.read({"a": 1})
    assert store.read({"a": 1}) is not None


def test_a_flipped_bit_is_noticed_wherever_it_is_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.add({"a": 1}, table(*range(30)))
    (part,) = store.folder({"a": 1}).glob("part-*")
    whole = part.read_bytes()
    for index in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[index] ^= 1 << index % 8
        part.write_bytes(flipped)
        found = store.read({"a": 1})
        # A bit of the checksum's own name may be missed: the numbers are right then.
        assert found is None or found.to_pydict() == table(*range(30)).to_pydict()
    assert caplog.text.count("it is set aside (.damaged), and computed again") == 1
    store.add({"a": 1}, table(*range(30)))
    assert store.read({"a": 1}) is not None


def test_the_part_of_another_key_and_one_without_its_columns_are_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in (1, 2):
        store.add({"a": key}, table(key))
    (other,) = store.folder({"a": 2}).glob("part-*")
    folder = store.folder({"a": 1})
    (folder / "part-copied.parquet").write_bytes(other.read_bytes())
    pq.write_table(pa.table({"x": [1.0]}), folder / "part-lacking.parquet")
    pq.write_table(pa.table({"feature": ["a"], "x": [1.0]}), folder / "part-zother.parquet")
    found = store.read({"a": 1})
    assert found is not None
    assert found["feature"].to_pylist() == [1]
    assert {path.name for path in folder.glob("*.damaged")} == {
        f"part-{name}.parquet.damaged" for name in ("copied", "lacking", "zother")
    }


def test_parts_of_earlier_versions_without_a_checksum_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.folder({"a": 1}).mkdir()
    pq.write_table(table(3), store.folder({"a": 1}) / "part-old.parquet")
    store.add({"a": 1}, table(4))
    found = store.read({"a": 1})
    assert found is not None
    assert found["feature"].to_pylist() == [3, 4]
    assert pq.read_table(next(store.folder({"a": 1}).glob("part-[!o]*")))["x"].to_pylist() == [4.0]


def test_what_can_not_be_read_is_told_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.add({"a": 1}, table(1))

    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        assert store.read({"a": 1}) is None
        assert store.load({"a": 1}, "x.safetensors") is None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refused)
        assert store.read({"a": 1}) is None
    assert caplog.text.count("can't be read (permission denied): it is computed again") == 3
    assert store.read({"a": 1}) is not None


def test_tensors_have_a_checksum_too(tmp_path: Path) -> None:
    store, key = Store(tmp_path), {"a": 1}
    store.keep(key, "w.safetensors", save({"w": np.arange(9.0)}, {"facts": "few"}))
    content = store.load(key, "w.safetensors")
    assert content is not None
    assert load(content)["w"].tolist() == [*range(9)]
    path = store.folder(key) / "w.safetensors"
    path.write_bytes(content[:-1] + b"\x01")
    assert store.load(key, "w.safetensors") is None
    assert not path.exists()
    path.write_bytes(save({"w": np.arange(9.0)}))  # by an earlier version
    assert store.load(key, "w.safetensors") == path.read_bytes()


def test_a_checksum_in_json_covers_all_else() -> None:
    kept = with_digest({"l0": 3.5, "tokens": 7})
    assert without_digest(json.loads(json.dumps(kept))) == {"l0": 3.5, "tokens": 7}
    assert without_digest({"l0": 3.5}) == {"l0": 3.5}
    assert without_digest({**kept, "tokens": 8}) is None


def test_a_feature_twice_counts_once() -> None:
    found = merged([table(1, 2), table(2, 3, value=5.0)])
    assert found.to_pydict() == {"feature": [1, 2, 3], "x": [1.0, 2.0, 15.0]}


def test_columns_that_are_all_null_in_one_part_fit_the_others() -> None:
    nulls = pa.table({"feature": [4], "x": pa.nulls(1)})
    assert merged([nulls, table(1)])["x"].to_pylist() == [1.0, None]


def texts(*rows: tuple[int, str, float], text: str = "x") -> pa.Table:
    features, prompts, factors = ([*column] for column in zip(*rows, strict=True))
    columns = {"feature": features, "prompt": prompts, "factor": factors}
    return pa.table({**columns, "text": [text] * len(rows)})


def test_rows_can_be_told_apart_by_several_columns(tmp_path: Path) -> None:
    store, by = Store(tmp_path), ("feature", "prompt", "factor")
    store.add({"a": 1}, texts((2, "b", 0.5), (2, "a", 3.0)), by)
    store.add({"a": 1}, texts((1, "b", 0.5), (2, "a", -1.0), (2, "b", 0.5)), by)
    found = store.read({"a": 1}, by)
    assert found is not None
    assert list(zip(*(found[name].to_pylist() for name in by), strict=True)) == [
        (1, "b", 0.5),
        (2, "a", -1.0),
        (2, "a", 3.0),
        (2, "b", 0.5),
    ]


def test_parts_are_named_after_the_rows_that_tell_them_apart(tmp_path: Path) -> None:
    store, by = Store(tmp_path), ("feature", "prompt", "factor")
    store.add({"a": 1}, texts((2, "b", 0.5)), by)
    store.add({"a": 1}, texts((2, "b", 0.5), text="again"), by)
    store.add({"a": 1}, texts((2, "b", 3.0)), by)
    assert len(list(store.folder({"a": 1}).glob("part-*"))) == 2


def test_a_cache_that_can_not_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    assert store.read({"a": 1}) is None
    store.add({"a": 1}, table(1))
    assert "nothing is kept there" in caplog.text


@pytest.mark.slow
def test_processes_may_write_the_same_key_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from steerlens.storage.store import Store; "
        "from tests.storage.test_store import table; store = Store(Path(sys.argv[1]))\n"
        "for i in range(60): store.add({'a': 1}, table(i, i + 1)); assert store.read({'a': 1})"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen(command) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    found = Store(tmp_path).read({"a": 1})
    assert found is not None
    assert found["feature"].to_pylist() == list(range(61))
    assert len(list(tmp_path.rglob("part-*"))) == 60
    assert not list(tmp_path.rglob("*tmp*"))
