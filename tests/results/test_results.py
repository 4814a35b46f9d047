from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steerlens.analysis.ranking import best_features
from steerlens.analysis.summary import summarise
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES, SCORES, TABLES, Table
from steerlens.results.folder import RunTables
from steerlens.results.pmi import PMI_FILE, Pmi
from steerlens.storage.files import json_text
from tests.support.frames import NASTY, found_pmi, frame

KEY = {"model": "m", "sae": "s", "hook_name": "h"}


def test_the_columns_that_others_rely_on_are_there_in_order() -> None:
    assert list(FEATURES.frame([])) == list(FEATURES.columns)
    assert list(FEATURES.columns)[:5] == ["model", "sae", "hook_name", "layer", "feature"]
    promised = (
        "output_score output_score_delta output_rank output_probability input_score "
        "input_score_unique input_examples logit_lens_tokens logit_lens_token_ids "
        "token_confidence_delta max_activation activation_frequency"
    )
    assert set(promised.split()) <= set(FEATURES.columns)


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    written = frame()
    FEATURES.write(written, tmp_path)
    read = FEATURES.read(tmp_path)
    pd.testing.assert_frame_equal(read, written)
    assert read["logit_lens_tokens"].tolist()[0] == NASTY


def test_a_file_has_the_same_types_when_every_score_is_null(tmp_path: Path) -> None:
    FEATURES.write(FEATURES.frame({**KEY, "layer": [1], "feature": [2]}), tmp_path)
    empty = pq.read_schema(tmp_path / FEATURES.file)
    FEATURES.write(frame(), tmp_path)
    assert pq.read_schema(tmp_path / FEATURES.file) == empty
    assert empty.field("logit_lens_token_ids").type == pa.list_(pa.int64())


def test_pandas_alone_can_read_the_file(tmp_path: Path) -> None:
    FEATURES.write(frame(), tmp_path)
    plain = pd.read_parquet(tmp_path / FEATURES.file)
    assert plain["output_score"].dtype == float
    assert list(plain["logit_lens_tokens"][0]) == NASTY


def test_rows_and_columns_give_the_same_table() -> None:
    rows = [{**KEY, "layer": 0, "feature": i, "output_score": i / 2} for i in range(3)]
    columns = {**KEY, "layer": 0, "feature": np.arange(3), "output_score": np.arange(3) / 2}
    pd.testing.assert_frame_equal(FEATURES.frame(rows), FEATURES.frame(columns))


def test_nan_counts_as_null() -> None:
    scores = np.array([0.5, np.nan], dtype=np.float32)
    table = FEATURES.frame({**KEY, "layer": 0, "feature": [1, 2], "output_score": scores})
    assert table["output_score"].isna().tolist() == [False, True]


def test_columns_of_other_methods_come_last(tmp_path: Path) -> None:
    table = frame(n=2, my_score=np.arange(6.0), unfilled=[None] * 6)
    assert list(table)[-2:] == ["my_score", "unfilled"]
    FEATURES.write(table, tmp_path)
    assert FEATURES.read(tmp_path)["my_score"].tolist() == [0, 1, 2, 3, 4, 5]


def test_tables_of_several_layers_can_be_joined(tmp_path: Path) -> None:
    joined = pd.concat([frame([0]), frame([1])], ignore_index=True)
    FEATURES.write(joined, tmp_path)
    assert len(FEATURES.read(tmp_path)) == 24


def test_half_of_a_surrogate_pair_is_no_reason_to_lose_a_run(tmp_path: Path) -> None:
    FEATURES.write(frame([0], 1, output_token=["\ud83d"]), tmp_path)
    assert FEATURES.read(tmp_path)["output_token"].tolist() == ["\ufffd"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"layer": [0], "feature": [0, 1]}, "'layer' has 1 entries for 2 features"),
        ({"layer": 0, "feature": [0], "output_rank": ["first"]}, "'output_rank' must hold int64"),
        ({"layer": [0]}, "needs the column 'feature'"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, object], message: str) -> None:
    with pytest.raises(SteerlensError, match=message):
        FEATURES.frame({**KEY, **columns})


def test_a_missing_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match=r"no features\.parquet in"):
        FEATURES.read(tmp_path)
    path = FEATURES.write(frame(), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SteerlensError, match="truncated"):
        FEATURES.read(tmp_path)
    pq.write_table(pa.table({"layer": [1]}), path)
    with pytest.raises(SteerlensError, match="no table of features: it lacks the column model"):
        FEATURES.read(tmp_path)
    pq.write_table(pa.table({**{k: ["a"] for k in KEY}, "layer": ["x"], "feature": [1]}), path)
    with pytest.raises(SteerlensError, match="no table of features"):
        FEATURES.read(tmp_path)


def test_the_summary_counts_what_numpy_counts() -> None:
    table = frame(range(4), 25)
    summary = summarise(RunTables(table))
    scores = table["output_score"].to_numpy(float)
    assert summary["overall"]["output_score_median"] == np.median(scores)
    assert summary["overall"]["output_score_at_least_0.01"] == (scores >= 0.01).mean()
    assert summary["overall"]["output_score_at_least_0.1"] == (scores >= 0.1).mean()
    assert [row["layer"] for row in summary["layers"]] == [0, 1, 2, 3]
    layer = scores[table["layer"] == 2]
    assert summary["layers"][2]["output_score_q25"] == np.quantile(layer, 0.25)
    assert len(summary["best_features"]) == 20
    assert summary["best_features"][0]["output_score"] == scores.max()
    assert len(summary["best_features"][0]["logit_lens_tokens"]) == 5


def test_a_summary_without_scores_is_valid_json() -> None:
    table = FEATURES.frame({**KEY, "layer": [3, 3], "feature": [0, 1]})
    summary = summarise(RunTables(table))
    assert summary["overall"]["output_score_median"] is None
    assert summary["best_features"] == []
    json.loads(json_text(summary), parse_constant=pytest.fail)
    assert summarise(RunTables(FEATURES.frame([])))["overall"]["features"] == 0


def test_a_summary_works_where_tokens_are_null() -> None:
    columns = {**KEY, "layer": 3, "feature": [0, 1], "output_score": [0.5, None]}
    best = summarise(RunTables(FEATURES.frame(columns)))["best_features"]
    assert best == [
        {
            "layer": 3,
            "feature": 0,
            "output_score": 0.5,
            "input_score": None,
            "output_token": None,
            "logit_lens_tokens": [],
        }
    ]


def test_equal_scores_keep_the_order_of_layer_and_feature() -> None:
    table = frame(range(3), 5, output_score=[0.5] * 15)
    shuffled = table.sample(frac=1, random_state=0)
    keys = best_features(shuffled, 6)[["layer", "feature"]].to_numpy().tolist()
    assert keys == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [1, 0]]


def test_nothing_after_the_scores_imports_torch() -> None:
    code = """
import sys
from steerlens.report import figures, tracking
from steerlens.storage import provenance
from steerlens import results
from steerlens.analysis import factors, payoff, pmi, roles, steering_summary, summary
from steerlens.report.figures import threshold
from steerlens.report import concept_page, steering, terminal
from steerlens.results import folder
heavy = {"torch", "transformer_lens", "sae_lens", "wandb", "matplotlib.pyplot"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("n", [0, 30])
def test_pmi_is_read_back_the_same(n: int, tmp_path: Path) -> None:
    written = found_pmi(n)
    written.write(tmp_path)
    read = Pmi.read(tmp_path)
    assert (read.windows, read.dropped) == (written.windows, written.dropped)
    pd.testing.assert_frame_equal(read.pairs, written.pairs.astype(dict(Pmi.TYPES)))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        "{}",
        '{"windows": 1, "pairs": []}',
        '{"windows": 1, "pairs": [{"pmi": 1}], "dropped": {}}',
        '{"windows": null, "pairs": [], "dropped": {}}',
    ],
)
def test_a_damaged_pmi_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / PMI_FILE).write_text(content)
    with pytest.raises(SteerlensError, match=r"pmi\.json can't be read.*run the job again"):
        Pmi.read(tmp_path)


def test_rows_that_the_keys_do_not_tell_apart_are_refused(tmp_path: Path) -> None:
    twice = pd.concat([frame([0], 2), frame([0], 1)], ignore_index=True)
    with pytest.raises(SteerlensError, match=r"features\.parquet would have several rows of model"):
        FEATURES.write(twice, tmp_path)
    assert not list(tmp_path.iterdir())
    FEATURES.write(twice.assign(job=["0", "0", "1"]), tmp_path, also_by=["job"])
    assert len(FEATURES.read(tmp_path)) == 3


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file)
def test_every_column_says_what_it_holds(table: Table) -> None:
    assert set(table.nullable) < set(table.keys) <= set(table.columns)
    assert table.about.endswith(".")
    for name, column in table.columns.items():
        assert column.about.endswith("."), name


def test_every_number_of_a_feature_is_a_score_or_belongs_to_one() -> None:
    numbers = {name for name, column in FEATURES.columns.items() if column.kind == "double"}
    beside = {"output_probability", "output_score_std", "input_score_unique", "f1_threshold"}
    assert numbers == {*SCORES, *beside}
