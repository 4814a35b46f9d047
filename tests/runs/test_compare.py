"""`steerlens compare DIR DIR`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from steerlens.cli import main
from steerlens.config.compose import compose
from steerlens.errors import SteerlensError
from steerlens.runs.compare import compare
from steerlens.storage.files import read_json, write_json
from tests.support.frames import frame
from tests.support.markdown import plain
from tests.support.sweeps import save_failed_job, save_job, save_run, save_sweep

pytestmark = pytest.mark.usefixtures("undrawn_figures")


def with_settings(folder: Path, *words: str) -> Path:
    settings = dataclasses.asdict(compose(["tracking.mode=disabled", *words]))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_two_runs_differ_in_settings_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = frame()
    moved = table["output_score"].to_numpy(dtype=float) + np.linspace(0, 0.02, len(table))
    one = with_settings(save_run(tmp_path / "ours"), "score.factor=10")
    other = save_run(tmp_path / "theirs", table.assign(output_score=moved))
    with_settings(other, "score.factor=5", "sae=smollm2-batchtopk")
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(one), str(other), f"paths.output_dir={tmp_path / 'out'}"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "sae: smollm2-topk | smollm2-batchtopk" in out
    assert "score.factor: 10.0 | 5.0" in out
    assert "largest 0.02 (layer 2, feature 11: " in out
    assert "input_score: equal in all 36 features." in out
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["settings"] == {
        "sae": ["smollm2-topk", "smollm2-batchtopk"],
        "score.factor": ["10.0", "5.0"],
    }
    (found,) = summary["agreement"].values()
    by_score = {each["score"]: each for each in found}
    close = float((np.linspace(0, 0.02, len(table)) <= 1e-3).mean())
    assert by_score["output_score"]["close"] == pytest.approx(close)
    assert [each["label"] for each in summary["series"]] == ["ours", "theirs"]
    assert (tmp_path / "out" / "figures" / "scores_by_layer.png").is_file()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| setting | ours | theirs |" in report
    assert "| score.factor | 10.0 | 5.0 |" in report
    assert "| score | layer | feature | ours | theirs | difference |" in report


def test_what_is_unfinished_is_told_before_any_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = {"state": "interrupted", "reason": "ended by SIGTERM", "layers": 8}
    one = save_run(tmp_path / "one")
    write_json(one / "status.json", killed)
    expected = r"one holds no finished run: interrupted: unfinished: 3 of 8 layers; ended by SIG"
    with pytest.raises(SteerlensError, match=expected):
        compare(one, save_run(tmp_path / "other"), tmp_path / "out")
    sweep = save_sweep(tmp_path / "sweep")
    save_job(sweep / "0", {"seed": "0"})
    write_json(save_job(sweep / "1", {"seed": "1"}) / "status.json", killed)
    compare(sweep, tmp_path / "other", tmp_path / "out")
    told = "sweep: job 1 interrupted: unfinished: 3 of 8 layers; ended by SIGTERM"
    assert capsys.readouterr().out.splitlines()[0].endswith(told)
    assert f"{told}.**" in plain((tmp_path / "out" / "report.md").read_text())


def test_a_comparison_is_written_into_no_folder_of_somebody_elses(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.md").write_text("my own")
    with pytest.raises(SteerlensError, match="mine isn't the folder of a run and isn't empty"):
        compare(run, run, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["report.md"]


def test_a_run_agrees_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_run(tmp_path / "run")
    compare(run, run, tmp_path / "out")
    out = capsys.readouterr().out
    assert "The settings are the same." in out
    assert "output_score: equal in all 36 features." in out


def test_results_of_two_sweeps_are_compared_by_their_labels(tmp_path: Path) -> None:
    sweeps = []
    for name, factors in (("one", ("5", "10")), ("other", ("10", "20"))):
        sweep = save_sweep(tmp_path / name)
        for job, factor in enumerate(factors):
            save_job(sweep / str(job), {"score.factor": factor})
        sweeps.append(sweep)
    compare(sweeps[0], sweeps[1], tmp_path / "out")
    summary = read_json(tmp_path / "out" / "summary.json")
    assert list(summary["agreement"]) == ["score.factor=10"]
    assert len(summary["series"]) == 4


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    failed = save_sweep(tmp_path / "failed")
    save_failed_job(failed / "0", {"seed": "1"}, {"state": "failed", "reason": "no."})
    with pytest.raises(SteerlensError, match="holds no finished run"):
        compare(run, failed, tmp_path / "out")
    with pytest.raises(SteerlensError, match="holds no sweep and no run"):
        compare(run, tmp_path, tmp_path / "out")
    sweeps = []
    for factors in (("1", "2"), ("3", "4")):
        sweep = save_sweep(tmp_path / f"sweep{factors[0]}")
        for job, factor in enumerate(factors):
            save_job(sweep / str(job), {"score.factor": factor})
        sweeps.append(sweep)
    with pytest.raises(SteerlensError, match="no result in common"):
        compare(sweeps[0], sweeps[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["compare", "a"], ["compare", "a", "b", "c"], ["join"]])
def test_wrong_words_are_told_with_the_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert f"usage: steerlens {words[0]} DIR" in capsys.readouterr().err
