"""`steerlens.load_run`: a run's folder in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import steerlens
from steerlens import SteerlensError
from steerlens.report import write_report
from steerlens.results.folder import read_tables
from steerlens.results.status import STATUS_FILE
from steerlens.storage.files import write_json
from tests.report.page.runs import HOSTILE
from tests.support.frames import frame, steering
from tests.support.sweeps import save_run


def test_a_run_has_its_tables_settings_and_features(tmp_path: Path, undrawn_figures: None) -> None:
    write_report(read_tables(save_run(tmp_path, frame((2, 3), 4), steering((2,), 2))), tmp_path)
    run = steerlens.load_run(str(tmp_path))
    assert len(run.features) == 8
    assert run.config["tracking"]["mode"] == "disabled"
    assert run.summary["overall"]["features"] == 8
    assert repr(run) == f"<run {tmp_path}: toy with toy-sae, 8 features>"
    assert run.page == tmp_path / "report.html"
    assert run.figures()
    assert all(path.is_file() for path in run.figures().values())
    feature = run.feature(2, 1)
    assert feature.row["feature"] == 1
    assert len(feature.steering) == 1
    assert repr(feature).startswith("<layer 2, feature 1: S_out ")


def test_a_notebook_shows_text_as_text(tmp_path: Path) -> None:
    save_run(tmp_path, frame((0,), 4, model=HOSTILE[0], output_token=HOSTILE[2]))
    html = steerlens.load_run(tmp_path)._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    save_run(tmp_path)
    write_json(tmp_path / STATUS_FILE, {"state": "failed", "reason": "no memory"})
    assert "no memory" in repr(steerlens.load_run(tmp_path))


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match="there is no folder"):
        steerlens.load_run(tmp_path / "nowhere")
    with pytest.raises(SteerlensError, match=r"there is no features\.parquet"):
        steerlens.load_run(tmp_path)
    save_run(tmp_path)
    with pytest.raises(SteerlensError, match=r"no feature 99 at layer 1.*layers 0, 1, 2"):
        steerlens.load_run(tmp_path).feature(1, 99)


def test_the_interface_completes() -> None:
    assert {"load_run", "load_subject", "score_features", "steer"} <= set(dir(steerlens))
