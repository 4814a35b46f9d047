"""The authors' published scores, where they are at hand: our summary says what they say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from steerlens.analysis.summary import summarise
from steerlens.config.schema import ReferenceConfig
from steerlens.data.reference import read_reference
from steerlens.report.figures import FIGURES, draw_all
from steerlens.results.folder import RunTables

AUTHORS = Path(__file__).parents[3] / "shared" / "paper" / "authors"

pytestmark = pytest.mark.skipif(not AUTHORS.is_dir(), reason="the authors' data is not here")


def published(name: str) -> pd.DataFrame:
    return read_reference(ReferenceConfig(path=str(AUTHORS), model=name)).table


@pytest.mark.parametrize(
    ("name", "at_least", "features", "share", "if_independent"),
    [("gemma2_9b", 0.3457, 4100, 0.0373, 0.0584), ("llama31", 0.5359, None, 0.0506, 0.0253)],
)
def test_shares_of_output_features_and_hybrids_are_the_published_ones(
    name: str,
    at_least: float,
    features: int | None,
    share: float,
    if_independent: float,
    tmp_path: Path,
) -> None:
    table = published(name)
    found = summarise(RunTables(table))
    assert found["overall"]["output_score_at_least_0.01"] == pytest.approx(at_least, abs=5e-5)
    hybrids = found["hybrids"]
    assert features in (None, hybrids["features"])
    assert hybrids["hybrid_share"] == pytest.approx(share, abs=5e-5)
    assert hybrids["hybrid_share_if_independent"] == pytest.approx(if_independent, abs=5e-5)
    low, high = hybrids["ratio_interval"]
    assert low < share / if_independent < high
    assert (high < 1) == (share < if_independent)
    assert set(draw_all(RunTables(table), tmp_path)) == set(FIGURES)


def test_medians_by_layer_are_the_published_ones() -> None:
    layers = {row["layer"]: row for row in summarise(RunTables(published("gemma2_9b")))["layers"]}
    assert layers[28]["output_score_median"] == pytest.approx(0.1444, abs=5e-5)
    assert layers[10]["output_score_median"] < 1e-4
    assert layers[1]["input_score_median"] == pytest.approx(0.611, abs=5e-4)
    llama = {row["layer"]: row for row in summarise(RunTables(published("llama31")))["layers"]}
    assert llama[31]["output_score_median"] == pytest.approx(0.7017, abs=5e-5)


def test_what_is_wrong_with_the_published_files_is_told() -> None:
    found = read_reference(ReferenceConfig(path=str(AUTHORS), model="gemma2_9b"))
    assert len(found.table) == 4200
    assert found.findings == [
        "gemma2_9b_input_scores.json: 100 listed features are left without a number."
    ]
    assert found.table["best_factor"].tolist().count(0.2) == 1224
