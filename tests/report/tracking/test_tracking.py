from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from steerlens.analysis.summary import summarise
from steerlens.config.schema import TrackingConfig
from steerlens.errors import SteerlensError
from steerlens.report.figures import FIGURES, draw_all
from steerlens.report.tracking import NullTracker, run_name, start
from steerlens.results.folder import RunTables
from tests.support.frames import frame, null_scores, tables

pytestmark = pytest.mark.usefixtures("undrawn_figures")


def track(folder: Path, mode: str = "offline", run: RunTables | None = None) -> None:
    run = run or RunTables(frame())
    summary = summarise(run)
    tracker = start(TrackingConfig(mode=mode, tags=["t"]), folder, {"layer": 3, "a": {"b": None}})
    tracker.log_tables(run, summary)
    tracker.log_figures(draw_all(run, folder))
    tracker.finish(summary)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the user was told; W&B's own log records stay in its files."""
    return [r.getMessage() for r in caplog.records if r.name == "steerlens.report.tracking"]


def test_an_unknown_mode_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match=r"unknown tracking\.mode 'ofline'.*'offline'"):
        start(TrackingConfig(mode="ofline"), tmp_path, {})


def test_disabled_means_no_wandb_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert isinstance(start(TrackingConfig(mode="disabled"), tmp_path, {}), NullTracker)
    track(tmp_path, "disabled")


def test_an_offline_run_lies_in_the_folder_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home, here, folder = (tmp_path / name for name in ("home", "here", "run"))
    for path in (home, here, folder):
        path.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)
    track(folder)
    assert warnings(caplog) == []
    [run] = (folder / "wandb").glob("offline-run-*")
    assert next(run.glob("run-*.wandb")).stat().st_size > 0
    assert len(list(run.glob("files/media/images/**/*.png"))) == len(FIGURES)
    [table] = run.glob("files/media/table/features_*.json")
    rows = json.loads(table.read_text())
    assert len(rows["data"]) == 36
    assert "\\x1b[31mred" in table.read_text(encoding="utf-8").replace("\\\\", "\\")
    assert list(here.iterdir()) == []
    assert [path for path in home.rglob("*") if "wandb" in path.name] == []


def test_tables_of_results_with_long_labels_are_logged_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(TrackingConfig(mode="offline"), tmp_path, {}, id="0123456789abcdef")
    for end in ("a", "b"):
        label = f"features/sae.path=/{'a folder/' * 30}{end}"
        tracker.log_rows(label, [{"x": end}])
    tracker.log_rows("sweep", [{"x": "c"}])
    tracker.finish({})
    assert warnings(caplog) == []
    files = (tmp_path / "wandb").glob("offline-run-*/files/media/table/**/*.json")
    assert sorted(json.loads(file.read_text())["data"][0][0] for file in files) == ["a", "b", "c"]


def test_two_runs_of_one_process_have_their_own_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        track(tmp_path / name)
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("group", "sweep_id", "expected"),
    [(None, None, None), ("runs 2026", None, "its own"), ("runs 2026", "agents", None)],
)
def test_wandb_run_id_is_that_of_one_run_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str | None,
    sweep_id: str | None,
    expected: str | None,
) -> None:
    asked: list[Any] = []
    fake: Any = types.ModuleType("wandb")
    fake.init = lambda **settings: asked.append(settings["id"])
    fake.Settings = type("Settings", (), {"model_fields": {}, "__init__": lambda *_, **__: None})
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_RUN_ID", "fixed")
    if sweep_id:
        monkeypatch.setenv("WANDB_SWEEP_ID", sweep_id)
    for _ in range(2):
        start(TrackingConfig(group=group), tmp_path, {})
    assert asked == [None, None] if expected is None else len({*asked, None, "fixed"}) == 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layer": "all"}, "demo: gemma-2-2b, gemma-scope-2b-res, layer all"),
        ({"layer": [3, 5]}, "demo: gemma-2-2b, gemma-scope-2b-res, layer 3, 5"),
        (
            {"model": {"name": "local", "path": "/a/mine/"}, "layer": 2},
            "demo: mine, gemma-scope-2b-res, layer 2",
        ),
        ({"model": None}, None),
    ],
)
def test_a_run_is_named_by_what_it_runs(settings: dict[str, Any], expected: str | None) -> None:
    usual = {
        "name": "demo",
        "model": {"name": "gemma-2-2b", "path": "google/gemma-2-2b"},
        "sae": {"name": "gemma-scope-2b-res", "path": None, "release": "gemma-scope-2b-pt-res"},
    }
    assert run_name(usual | settings) == expected


class Broken:
    """A W&B run that fails at the calls named in `at`."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.summary: dict[str, Any] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> None:
            self.calls.append(name)
            if name == self.at:
                raise RuntimeError(f"{name} is\nbroken.")

        return call


@pytest.mark.parametrize("at", ["init", "define_metric", "log", "finish"])
def test_a_failing_wandb_is_told_once_and_stops_nothing(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Broken(at)
    fake: Any = types.ModuleType("wandb")

    def init(**_: Any) -> Broken:
        if at == "init":
            raise RuntimeError("init is\nbroken.")
        return run

    fake.init = init
    for name in ("Settings", "Histogram", "Table", "Image"):
        setattr(fake, name, lambda *_, **__: object())
    fake.Settings = type("Settings", (), {"model_fields": {}, "__init__": lambda *_, **__: None})
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with caplog.at_level(logging.WARNING):
        track(tmp_path)
    [message] = warnings(caplog)
    assert f"({at} is broken); the run goes on without it" in message
    assert "\n" not in message
    assert run.calls.count("log") <= 1 or at == "finish"


def test_a_missing_wandb_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    track(tmp_path)
    assert len(warnings(caplog)) == 1


def test_online_without_a_key_neither_asks_nor_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    class Keyboard:
        def isatty(self) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            pytest.fail("W&B asked on stdin")

    monkeypatch.setattr(sys, "stdin", Keyboard())
    track(tmp_path, "online")
    [message] = warnings(caplog)
    assert "W&B failed while starting" in message


def test_steering_is_told_with_curves_texts_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    in_summary: dict[str, str | None] = {}
    run = types.SimpleNamespace(
        summary={},
        log=logged.append,
        define_metric=lambda name, summary=None, **_: in_summary.update({name: summary}),
        finish=lambda **_: None,
    )
    fake: Any = types.ModuleType("wandb")
    fake.init = lambda **_: run
    fake.Settings = type("Settings", (), {"model_fields": {}, "__init__": lambda *_, **__: None})
    fake.Histogram = fake.Image = lambda *_, **__: object()
    fake.Table = lambda columns, data: [dict(zip(columns, row, strict=True)) for row in data]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    track(tmp_path, run=dataclasses.replace(tables(), null_scores=null_scores((0, 1))))
    curve = [one for one in logged if "factor" in one]
    assert [one["factor"] for one in curve] == [0.0, 0.5, 2.0, 8.0]
    assert all("by_factor/success_20" in one for one in curve)
    [texts] = [one["texts"] for one in logged if "texts" in one]
    assert len(texts) == 12 * 2 * 4
    assert all(row["text"].isprintable() for row in texts)
    assert "figures/success_by_threshold" in logged[-1]
    assert run.summary["steering.payoff.0.1.success.value"] == 1.0
    [payoffs] = [one["payoff"] for one in logged if "payoff" in one]
    assert [row["layer"] for row in payoffs[:4]] == ["all", "within layers", "0", "1"]
    [curve] = [one["threshold_curve"] for one in logged if "threshold_curve" in one]
    assert all(row["payoff_within_layers"] == pytest.approx(1) for row in curve)
    assert run.summary["steering.payoff.0.1.over_unfiltered_within_layers.value"] == 1.0
    by_layer = [one for one in logged if "layer" in one]
    assert [one["by_layer/output_score_null_count"] for one in by_layer] == [99, 99]
    assert all("by_layer/output_score_null" in one for one in by_layer)
    # W&B would put the last layer's and the strongest factor's numbers into the run's summary.
    assert in_summary == dict.fromkeys(("layer", "by_layer/*", "factor", "by_factor/*"), "none")
    [layers] = [one["layers"] for one in logged if "layers" in one]
    assert [row["layer"] for row in layers] == [0, 1]
    assert run.summary["texts_table"] == "96 of 192; generations.parquet has all"


def wandb_records(path: Path) -> list[dict[str, Any]]:
    """The records of a `.wandb` file to the run's end, read by W&B's own `wandb leet inspect`."""
    from wandb.util import get_core_path

    inspect = [get_core_path(), "leet", "inspect", "--json", "--no-observability", "--follow"]
    wait = ["--idle-timeout", "60s", "--run-file", str(path), str(path.parent.parent)]
    read = subprocess.run([*inspect, *wait], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in read.stdout.splitlines()]


@pytest.mark.parametrize(("limit", "files"), [(10**7, 1), (10, 0)])
def test_the_page_is_html_and_too_large_an_artifact_as_wandb_reads_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, files: int
) -> None:
    monkeypatch.setattr("steerlens.report.tracking.PAGE_BYTES", limit)
    page = tmp_path / "report.html"
    page.write_text("<!doctype html><title>a page</title>", encoding="utf-8")
    tracker = start(TrackingConfig(), tmp_path, {})
    run = tables()
    tracker.log_tables(run, summarise(run))
    tracker.log_page(page)
    tracker.finish({})
    [written] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    records = wandb_records(written)
    kinds = {record["type"] for record in records}
    assert "exit" in kinds, "read to its end"
    logged: dict[str, list[Any]] = {}
    for record in records:
        for key, value in record.get("history", {}).get("item", {}).items():
            logged.setdefault(key, []).append(value)
    assert logged["factor"] == [0, 0.5, 2, 8]
    success = logged["by_factor/success_20"]
    assert len(success) == 4
    assert success[0] < success[-1]
    for name in ("features", "layers", "texts", "payoff", "threshold_curve"):
        assert logged[f"{name}._type"] == ["table-file"]
    [path], [n_rows] = logged["texts.path"], logged["texts.nrows"]
    rows = json.loads((written.parent / "files" / path).read_text(encoding="utf-8"))
    assert len(rows["data"]) == n_rows == 96
    assert logged.get("report._type", []) == ["html-file"] * files
    assert ("artifact" in kinds) >= (not files)
    media = [*written.parent.glob("files/media/html/report*.html")]
    assert [path.read_text() for path in media] == [page.read_text()] * files
