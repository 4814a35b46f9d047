from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from steerlens.errors import SteerlensError
from steerlens.figures import FIGURES
from steerlens.files import write_json
from steerlens.report import report
from steerlens.results import FEATURES
from steerlens.summary import summarise
from steerlens.tables import RunTables
from tests.support.frames import frame


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FEATURES.write(frame(), tmp_path)
    report(tmp_path)
    assert "Best output features" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text()) == summarise(RunTables(frame()))
    text = (tmp_path / "report.md").read_text()
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / line.partition("(")[2].rstrip(")")).is_file()
    assert text.count("![") == len(FIGURES)


def test_reporting_twice_changes_no_byte(tmp_path: Path) -> None:
    FEATURES.write(frame(), tmp_path)
    report(tmp_path)
    first = files(tmp_path)
    report(tmp_path)
    assert files(tmp_path) == first


def test_tokens_cannot_break_the_report(tmp_path: Path) -> None:
    FEATURES.write(frame(range(1), 12), tmp_path)
    report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "\x1b" not in text
    assert "<b>" not in text
    rows = text.partition("## Best output features")[2].splitlines()
    assert {row.count("|") for row in rows if row.startswith("|")} == {8}
    assert "[bold␣red]x[/]" in html.unescape(text)


def test_a_run_without_output_scores_can_be_reported(tmp_path: Path) -> None:
    columns = {"model": "m", "sae": ["s", "t"], "hook_name": "h", "layer": 0, "feature": [1, 2]}
    FEATURES.write(FEATURES.frame(columns), tmp_path)
    report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text == "# m with s, t\n\n2 features, 0 with an output score, 0 with an input score.\n"


def test_a_folder_without_results_is_refused_with_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SteerlensError, match=r"it has no features\.parquet; give the folder"):
        report(Path("nothing"))
    run = tmp_path / "outputs" / "demo" / "2026"
    run.mkdir(parents=True)
    FEATURES.write(frame(), run)
    with pytest.raises(SteerlensError, match="the newest run is outputs/demo/2026"):
        report(Path("nothing"))
    with pytest.raises(SteerlensError, match="the newest run is outputs/demo/2026"):
        report(Path("outputs"))


def test_a_failed_run_without_results_is_told_as_such(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", {"state": "failed", "reason": "x"})
    with pytest.raises(SteerlensError, match="its run is failed and has no features"):
        report(tmp_path)
