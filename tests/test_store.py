"""Finished scores are found again, and only what is missing is computed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from steerlens.store import Store, merged


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


def test_a_feature_twice_counts_once() -> None:
    found = merged([table(1, 2), table(2, 3, value=5.0)])
    assert found.to_pydict() == {"feature": [1, 2, 3], "x": [1.0, 2.0, 15.0]}


def test_columns_that_are_all_null_in_one_part_fit_the_others() -> None:
    nulls = pa.table({"feature": [4], "x": pa.nulls(1)})
    assert merged([nulls, table(1)])["x"].to_pylist() == [1.0, None]
