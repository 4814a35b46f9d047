"""Tables and settings of earlier versions are read in the names of today."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steerlens.analysis.summary import summarise
from steerlens.report import report_text
from steerlens.results import COVERAGE, GENERATIONS, STEERING, TABLES, features_alone
from steerlens.results.earlier import in_present_settings
from steerlens.results.folder import read_tables
from tests.support.frames import steering

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
TABLE_OF = {table.file: table for table in TABLES}


def save_earlier(table: pd.DataFrame, names: dict[str, str], file: Path) -> None:
    """Write `table` as a version did that had other `names`, and no `together`."""
    columns = table.drop(columns="together", errors="ignore").rename(columns=names)
    pq.write_table(pa.Table.from_pandas(columns, preserve_index=False), file)


def test_features_together_have_a_column_of_their_own(tmp_path: Path) -> None:
    controls = [None, "+1", "+1+2", "random_direction"]
    save_earlier(steering([3], 4, control=controls), {}, tmp_path / STEERING.file)
    read = STEERING.read(tmp_path)
    pairs = read[["control", "together"]].astype(object)
    pairs = pairs.where(pairs.notna(), None).to_numpy().tolist()
    assert pairs == [[None, None], [None, "1"], [None, "1+2"], ["random_direction", None]]
    assert features_alone(read)["feature"].tolist() == [0]
    STEERING.write(read, tmp_path)
    pd.testing.assert_frame_equal(STEERING.read(tmp_path), read)


def test_a_table_without_any_control_is_one_of_features_alone(tmp_path: Path) -> None:
    table = steering([3], 2).drop(columns=["control", "concept"])
    save_earlier(table, {}, tmp_path / STEERING.file)
    assert len(features_alone(STEERING.read(tmp_path))) == 2


def test_shares_of_texts_with_a_word_have_their_names_of_today(tmp_path: Path) -> None:
    place = {"model": "m", "sae": "s", "hook_name": "h", "layer": 0}
    rows = [{**place, "word": "sun", "word_share": 0.5, "word_share_unsteered": 0.25}]
    table = COVERAGE.frame(rows)
    names = {"word_share": "shown", "word_share_unsteered": "shown_unsteered"}
    save_earlier(table, names, tmp_path / COVERAGE.file)
    pd.testing.assert_frame_equal(COVERAGE.read(tmp_path), table)


@pytest.mark.parametrize("name", sorted(path.name for path in RESULTS.iterdir()))
def test_committed_results_are_told(name: str) -> None:
    tables = read_tables(RESULTS / name)
    assert "## " in report_text(tables, summarise(tables), {}, RESULTS / name)


def test_a_unit_has_its_name_of_today() -> None:
    assert in_present_settings({"steer": {"unit": "one", "n": 2}}) == {
        "steer": {"unit": "raw", "n": 2}
    }
    for settings in ({}, {"steer": None}, {"steer": {"unit": "norm"}}):
        assert in_present_settings(settings) == settings


@pytest.mark.parametrize(
    "file", [path.relative_to(RESULTS) for path in RESULTS.glob("*/*.parquet")], ids=str
)
def test_stored_tables_are_read_and_their_keys_tell_rows_apart(file: Path) -> None:
    table = TABLE_OF[file.name]
    read = table.read((RESULTS / file).parent)
    assert len(read) == pq.read_metadata(RESULTS / file).num_rows > 0
    assert list(read.columns)[: len(table.columns)] == list(table.columns)
    job = ["job"] if "job" in read else []
    assert not read.duplicated([*job, *table.keys]).any()


def test_a_stored_table_has_controls_only_in_their_column() -> None:
    texts = GENERATIONS.read(RESULTS / "filter")
    assert set(texts["control"].dropna()) == {"random_direction"}
