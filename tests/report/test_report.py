from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from steerlens.analysis.summary import summarise
from steerlens.errors import SteerlensError
from steerlens.report import report, report_text
from steerlens.report.figures import FIGURES, STEERING_FIGURES
from steerlens.report.page.overview import run_overview
from steerlens.results import COVERAGE, FEATURES, GENERATIONS, NULL_SCORES, STEERING
from steerlens.results.folder import CONFIG_FILE, RunTables, read_tables
from steerlens.storage.files import read_json, write_json
from tests.support.frames import NASTY, found_pmi, frame, null_scores, tables
from tests.support.markdown import plain
from tests.support.sweeps import save_run

pytestmark = pytest.mark.usefixtures("undrawn_figures")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FEATURES.write(frame(), tmp_path)
    report(tmp_path)
    assert "Best output features" in capsys.readouterr().out
    summary = summarise(RunTables(frame())) | {"study": None}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    text = (tmp_path / "report.md").read_text()
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / line.partition("(")[2].rstrip(")")).is_file()
    assert text.count("![") == len(FIGURES)


def test_random_directions_stand_in_the_table_by_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FEATURES.write(frame(output_score_p=[0.01, 0.5] * 18), tmp_path)
    report(tmp_path)
    assert "random" not in (tmp_path / "report.md").read_text()
    NULL_SCORES.write(null_scores(), tmp_path)
    report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    table = text.partition("## By layer")[2].partition("## Best")[0].strip().splitlines()
    assert "random q25" in table[0]
    assert plain(table[0]).endswith("p <= 0.05 | q <= 0.05 |")
    assert all(row.endswith("| 50.0% |") for row in table[2:])
    assert len({row.count("|") for row in table}) == 1
    for shown in (text, capsys.readouterr().out):
        assert "297 random directions" in shown


def test_a_truncated_table_of_random_directions_is_refused(tmp_path: Path) -> None:
    FEATURES.write(frame(), tmp_path)
    (tmp_path / "null.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(SteerlensError, match=r"null\.parquet can't be read: it is truncated"):
        report(tmp_path)


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
    assert "[bold␣red]x[/]" in plain(text)


def test_a_run_without_output_scores_can_be_reported(tmp_path: Path) -> None:
    columns = {"model": "m", "sae": ["s", "t"], "hook_name": "h", "layer": 0, "feature": [1, 2]}
    FEATURES.write(FEATURES.frame(columns), tmp_path)
    report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.split("\n\n")[:2] == ["# m with s, t", "2 features of s, t at layer 0 of m."]
    assert "- 2 features, none with a score." in text


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
    page = (tmp_path / "report.html").read_text()
    assert "its run is failed and has no features.parquet" in page
    assert '"state":"x"' in page


def test_tables_that_cannot_be_read_are_told_on_the_page(tmp_path: Path) -> None:
    save_run(tmp_path)
    (tmp_path / "features.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(SteerlensError, match=r"features\.parquet"):
        report(tmp_path)
    assert "A run without results" in (tmp_path / "report.html").read_text()


def test_the_report_has_the_top_of_the_page(tmp_path: Path) -> None:
    save_run(tmp_path)
    report(tmp_path)
    overview = run_overview(read_tables(tmp_path), read_json(tmp_path / "summary.json"), tmp_path)
    text = plain((tmp_path / "report.md").read_text())
    for line in (overview.question, *overview.notes, *overview.sentences):
        assert line in text
    assert "&#" not in text


def test_an_unfinished_run_is_told_as_such_before_any_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FEATURES.write(frame(range(2)), tmp_path)
    status = {"state": "interrupted", "reason": "ended by SIGTERM", "layers": 8}
    write_json(tmp_path / "status.json", status)
    report(tmp_path)
    told = "unfinished: 2 of 8 layers; ended by SIGTERM"
    assert capsys.readouterr().out.splitlines()[0] == f"{told}."
    lines = plain((tmp_path / "report.md").read_text()).split("\n\n")
    assert lines[1] == f"**{told}.**"
    write_json(tmp_path / "status.json", {**status, "state": "done"})
    report(tmp_path)
    assert "unfinished:" not in capsys.readouterr().out + (tmp_path / "report.md").read_text()


def steered(folder: Path, **columns: Any) -> RunTables:
    """A run that steered, in `folder`, with features of every role."""
    scores = {"input_score": [0.9, 0.0, 0.5] * 4, "output_score": [0.0, 0.9, 0.5] * 4}
    found = tables(**(scores | columns))
    prompts = "a | \x1b[0m<i>" + found.generations["prompt"]
    texts = found.generations.assign(text="".join(NASTY), prompt=prompts)
    FEATURES.write(found.features, folder)
    GENERATIONS.write(texts, folder)
    STEERING.write(found.steering, folder)
    found_pmi().write(folder)
    settings = {"choice": {"rule": "paper"}, "model": {"late_from": 1}}
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(settings))
    return read_tables(folder)


def test_a_run_that_steered_is_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = steered(tmp_path)
    report(tmp_path)
    shown = capsys.readouterr().out
    assert "Best steered features" in shown
    assert "12 features were steered in 192 texts." in shown
    summary = summarise(found) | {"study": None}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    text = (tmp_path / "report.md").read_text()
    titles = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    assert titles[3:] == [
        "Steering",
        "Best steered features",
        "What selecting by S_out buys",
        "Success by threshold of S_out",
        "What to select features by",
        "Input features",
        "Output features",
        "Hybrid features",
        "Success tokens and the first logit-lens token",
    ]
    assert "PMI (in bits) of 30 pairs" in text
    late = {f"{name}_late_layers" for name in STEERING_FIGURES}
    of_roles = {"input_and_output_feature", "hybrid_features", "pmi_by_role"}
    names = {*FIGURES, *STEERING_FIGURES, *late, *of_roles}
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == names
    assert text.count("![") == len(names)


def test_reporting_a_run_that_steered_twice_changes_no_byte(tmp_path: Path) -> None:
    steered(tmp_path)
    report(tmp_path)
    first = files(tmp_path)
    report(tmp_path)
    assert files(tmp_path) == first


def test_texts_cannot_break_the_report(tmp_path: Path) -> None:
    found = steered(tmp_path, **{"a_b|<i>": range(12)})
    text = report_text(found, summarise(found), {}, tmp_path).partition("## Steering")[2]
    assert text.replace("\n", "").isprintable()
    tags = re.findall(r"<[^>]*>", text.replace("<br>", ""))
    assert set(tags) <= {"<strong>", "</strong>"}
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "a_b|<i>" in plain(text)


def test_a_run_in_which_steering_moved_no_logit_says_so(tmp_path: Path) -> None:
    found = tables()
    found = dataclasses.replace(found, generations=found.generations.assign(first_step_kl=0.0))
    text = report_text(found, summarise(found), {}, tmp_path)
    assert text.count("Steering moved no logit") == 1


def test_words_cannot_break_the_report(tmp_path: Path) -> None:
    place = {"model": "toy", "sae": "toy-sae", "hook_name": "hook"}
    rows = [
        {**place, "layer": layer, "word": word, "tokens": [word, "\n"], "reason": word}
        for layer in (0, 1)
        for word in NASTY
    ]
    rows[0] |= {"feature": 3, "concept_score": 0.25, "best_factor": 2.0, "reason": None}
    rows[0] |= {"word_share": 0.5, "word_share_unsteered": 0.0, "perplexity": 20.0, "texts": 4}
    shown = dataclasses.replace(RunTables(frame()), coverage=COVERAGE.frame(rows))
    summary = summarise(shown) | {"study": None}
    text = report_text(shown, summary, {}, tmp_path)
    section = text.partition("## Words")[2]
    assert f"Of {len(NASTY)} words" in section
    assert "\x1b" not in section
    assert "<b>" not in section
    rows_shown = [row for row in section.splitlines() if row.startswith("|")]
    assert {row.count("|") for row in rows_shown} == {12}
    assert len(rows_shown) == 2 + len(NASTY)
    assert "| 0 | 3 | 0.2500 | 2 | 50% | 0% | 20 | - |" in rows_shown[2]
    assert "## Words" not in report_text(RunTables(frame()), summary, {}, tmp_path)
