"""The joined result of a sweep, from folders as its jobs leave them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from steerlens.errors import SteerlensError
from steerlens.report.page.overview import run_sentences, run_title
from steerlens.results import COVERAGE, FEATURES, NULL_SCORES, STEERING
from steerlens.results.folder import RunTables
from steerlens.results.tables.sweep import SWEEP
from steerlens.results.text import markdown, visible
from steerlens.runs.sweep import join, join_sweep
from steerlens.runs.sweep.join import merge
from steerlens.storage.files import read_json, write_json
from steerlens.storage.provenance import PROVENANCE_FILE
from tests.support.frames import assert_identical, frame, null_scores, tables
from tests.support.steering import steering
from tests.support.sweeps import save_failed_job, save_job, save_run, save_sweep

pytestmark = pytest.mark.usefixtures("undrawn_figures")


def csv(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "sweep.csv", dtype={"job": str})


def modified(folder: Path) -> dict[str, int]:
    return {
        file.relative_to(folder).as_posix(): file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_rows_of_all_jobs_say_which_job_and_settings_they_are_of(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep", jobs=2)
    for job, factor in enumerate(("5", "10")):
        save_job(sweep / str(job), {"layer": "all", "score.factor": factor})
    joined = join_sweep(sweep)
    table = FEATURES.read(sweep)
    assert joined.complete
    assert [name for name in csv(sweep) if name != "score.factor"] == [*SWEEP.columns]
    assert len(table) == 2 * len(frame())
    assert table["job"].drop_duplicates().tolist() == ["0", "1"]
    assert table["score.factor"].drop_duplicates().tolist() == ["5", "10"]
    assert [one.label for one in joined.series] == ["score.factor=5", "score.factor=10"]
    assert {path.name for path in (sweep / "figures").glob("*.png")} == {
        *("scores_by_layer.png", "score_distributions.png", "hybrid_ratios.png")
    }
    assert csv(sweep)["n_features"].tolist() == [36, 36]
    assert csv(sweep)["seconds"].tolist() == [60, 60]


def test_layers_of_different_jobs_are_one_result_with_a_runs_figures(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    for job, layer in enumerate((3, 1)):
        save_job(sweep / str(job), {"layer": str(layer)}, features=frame([layer]))
    joined = join_sweep(sweep)
    assert [one.jobs for one in joined.series] == [["0", "1"]]
    assert FEATURES.read(sweep)["layer"].drop_duplicates().tolist() == [1, 3]
    assert (sweep / "figures" / "input_against_output.pdf").is_file()
    summary = read_json(sweep / "summary.json")
    assert [row["layer"] for row in summary["series"][0]["layers"]] == [1, 3]


def test_shards_come_in_their_order_not_that_of_the_jobs(tmp_path: Path) -> None:
    whole = frame(range(2), 10)
    parts = [
        whole.loc[(whole["feature"] >= start) & (whole["feature"] < stop)].reset_index(drop=True)
        for start, stop in ((0, 3), (3, 6), (6, 10))
    ]
    sweep = save_sweep(tmp_path / "sweep")
    for job, shard in enumerate((2, 0, 1)):
        save_job(sweep / str(job), {"shard": f"{shard}/3"}, features=parts[shard])
    join_sweep(sweep)
    joined = FEATURES.read(sweep)
    assert_identical(joined.loc[:, list(whole)], whole)


def test_the_report_of_one_result_in_parts_begins_as_its_page_does(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    for job, layer in enumerate((1, 3)):
        save_job(sweep / str(job), {"layer": str(layer)}, features=frame([layer]))
    joined = join_sweep(sweep)
    (summary,) = read_json(sweep / "summary.json")["series"]
    title, jobs, told = (sweep / "report.md").read_text().split("\n\n")[:3]
    assert (title, jobs) == (f"# {run_title(summary)}", "2 jobs: 2 done")
    sentences = run_sentences(joined.series[0].tables, summary)
    assert told.splitlines() == [f"- {markdown(visible(line))}" for line in sentences]


def test_merged_runs_have_all_rows_and_count_what_was_left_out_of_pmi() -> None:
    one = tables()
    both = merge([one, one])
    assert len(both.features) == 2 * len(one.features)
    assert len(both.generations) == 2 * len(one.generations)
    assert len(both.steering) == 2 * len(one.steering)
    if one.pmi is not None and both.pmi is not None:
        assert sum(both.pmi.dropped.values()) == 2 * sum(one.pmi.dropped.values())
    assert merge([one]) is one


def test_a_table_of_steering_is_joined_where_there_is_one(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    save_job(sweep / "0", {"seed": "0"}, steering=steering())
    save_job(sweep / "1", {"seed": "1"})
    join_sweep(sweep)
    assert STEERING.read(sweep)["job"].unique().tolist() == ["0"]
    assert (sweep / "figures" / "success_by_threshold.png").is_file()


def test_the_words_of_all_jobs_are_joined(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    named = {"model": "m", "sae": "s", "hook_name": "h"}
    for job, shown in enumerate((1.0, 0.25)):
        rows = [
            {"word": word, "layer": 1, "tokens": [word], "word_share": shown, **named}
            for word in ("date", "music")
        ]
        save_job(sweep / str(job), {"seed": str(job)}, coverage=COVERAGE.frame(rows))
    save_job(sweep / "2", {"seed": "2"})
    join_sweep(sweep)
    words = COVERAGE.read(sweep)
    assert words["word"].tolist() == ["date", "music", "date", "music"]
    assert words["job"].tolist() == words["seed"].tolist() == ["0", "0", "1", "1"]
    assert words["word_share"].tolist() == [1.0, 1.0, 0.25, 0.25]


def test_random_directions_that_shards_share_are_there_once(tmp_path: Path) -> None:
    whole, null = frame(range(2), 10), null_scores(range(2))
    sweep = save_sweep(tmp_path / "sweep")
    for shard in range(2):
        part = whole.loc[whole["feature"] % 2 == shard].reset_index(drop=True)
        overrides = {"shard": f"{shard}/2"}
        save_job(sweep / str(shard), overrides, features=part, null_scores=null)
    (series,) = join_sweep(sweep).series
    joined = NULL_SCORES.read(sweep)
    assert_identical(joined.loc[:, list(null)], null)
    assert not series.tables.null_scores.duplicated(list(NULL_SCORES.keys)).any()
    (summary,) = read_json(sweep / "summary.json")["series"]
    assert summary["overall"]["output_score_null_count"] == len(null)
    share = (null["output_score"] >= 0.1).mean()
    assert summary["overall"]["output_score_null_at_least_0.1"] == pytest.approx(share)
    assert csv(sweep)["null_output_features"].tolist() == pytest.approx([share, share])


def test_runs_with_and_without_random_directions_are_joined(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    save_job(sweep / "0", {"score.factor": "5"}, null_scores=null_scores())
    save_job(sweep / "1", {"score.factor": "10"})  # by a version that had none
    join_sweep(sweep)
    joined = NULL_SCORES.read(sweep)
    assert joined["job"].drop_duplicates().tolist() == ["0"]
    assert joined["score.factor"].drop_duplicates().tolist() == ["5"]
    counts = [
        one["overall"]["output_score_null_count"]
        for one in read_json(sweep / "summary.json")["series"]
    ]
    assert counts == [len(joined), 0]
    assert (sweep / "figures" / "scores_by_layer.png").is_file()


def test_the_payoff_within_layers_of_every_job_is_in_the_table_of_jobs(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    save_job(sweep / "0", {"seed": "0"}, steering=steering())
    join_sweep(sweep)
    (summary,) = read_json(sweep / "summary.json")["series"]
    found = summary["steering"]["payoff"]["0.1"]
    (row,) = csv(sweep).to_dict("records")
    assert row["payoff"] == pytest.approx(found["over_unfiltered"]["value"])
    within = found["over_unfiltered_within_layers"]["value"]
    assert row["payoff_within_layers"] == pytest.approx(within)
    assert row["payoff"] > row["payoff_within_layers"] > 1


def test_without_words_no_table_of_them_is_left(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    COVERAGE.write(COVERAGE.frame([]), sweep)
    save_job(sweep / "0", {"seed": "0"})
    join_sweep(sweep)
    assert not (sweep / COVERAGE.file).exists()


def test_jobs_without_results_are_listed_with_their_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = save_sweep(tmp_path / "sweep", jobs=5)
    save_job(sweep / "0", {"layer": "1"})
    save_failed_job(sweep / "1", {"layer": "9"}, {"state": "failed", "reason": "no \x1b[31mlayer."})
    save_failed_job(sweep / "2", {"layer": "3"}, {"state": "running"})
    save_job(sweep / "3", {"layer": "4"})
    (sweep / "3" / "features.parquet").write_bytes(b"PAR1 cut")
    joined = join_sweep(sweep)
    assert not joined.complete
    assert [job.state for job in joined.jobs] == [
        *("done", "failed", "running", "unreadable", "missing")
    ]
    reasons = csv(sweep)["reason"].tolist()
    assert reasons[2] == "it was killed, or still runs"
    assert "truncated" in reasons[3]
    assert reasons[4] == "it was never started"
    out = capsys.readouterr().out
    assert "Job 1 failed: no \\x1b[31mlayer." in out
    assert set(FEATURES.read(sweep)["job"]) == {"0"}
    assert "\\x1b" in (sweep / "report.md").read_text()


def test_joining_again_changes_nothing(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    save_job(sweep / "0", {"seed": "0"})
    join_sweep(sweep)
    before = modified(sweep)
    join_sweep(sweep)
    assert modified(sweep) == before
    save_job(sweep / "1", {"seed": "1"})
    join_sweep(sweep)
    assert set(FEATURES.read(sweep)["job"]) == {"0", "1"}


def test_an_interrupted_join_is_done_again_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    save_job(sweep / "0", {"seed": "0"})
    save_job(sweep / "1", {"seed": "1"})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("steerlens.report.figures.overlay.draw_overlay", interrupted)
        with pytest.raises(KeyboardInterrupt):
            join_sweep(sweep)
    assert not (sweep / "summary.json").exists()
    joined = join_sweep(sweep)
    assert joined.complete
    assert len(read_json(sweep / "summary.json")["series"]) == 2
    assert not list(sweep.rglob("*.tmp"))


def test_columns_of_only_some_jobs_are_kept_and_clashing_ones_are_told(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    size = len(frame())
    save_job(sweep / "0", {"seed": "0"}, features=frame(mine=np.ones(size), other=np.arange(size)))
    save_job(sweep / "1", {"seed": "1"}, features=frame(other=["a"] * size))
    joined = join_sweep(sweep)
    table = FEATURES.read(sweep)
    assert joined.complete
    assert table["mine"].tolist()[:size] == [1.0] * size
    assert all(table["mine"].isna().tolist()[size:])
    assert "other" not in table
    (told,) = read_json(sweep / "summary.json")["left_out"]
    assert "'other' holds numbers in job 0 and texts in job 1" in told


def test_jobs_of_an_earlier_command_in_the_same_folder_are_left_aside(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep", jobs=1, id="two")
    save_job(sweep / "0", {"seed": "0"}, id="two")
    save_job(sweep / "1", {"seed": "1"}, id="one")
    assert [job.name for job in join_sweep(sweep).jobs] == ["0"]


def test_sweeps_and_runs_are_joined_in_a_folder_of_their_own(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    save_job(sweep / "0", {"seed": "0"})
    run = save_run(tmp_path / "run", frame(model="another"))
    joined = join([sweep, run], tmp_path / "out")
    assert [job.name for job in joined.jobs] == ["sweep/0", "run"]
    assert set(FEATURES.read(tmp_path / "out")["model"]) == {"toy", "another"}
    assert not (sweep / "features.parquet").exists()


@pytest.mark.parametrize(("other_digest", "n_series"), [("a", 1), ("b", 2)])
def test_where_the_saes_that_ship_are_installed_tells_no_results_apart(
    tmp_path: Path, other_digest: str, n_series: int
) -> None:
    runs = []
    for shard, digest in (("0/2", "a"), ("1/2", other_digest)):
        home = f"/home/{shard[0]}/site-packages/steerlens_smollm2"
        run = save_run(tmp_path / shard[0], frame((int(shard[0]),)))
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"shard": shard}
        config["sae"] |= {"path": f"{home}/smollm2-topk", "examples": f"{home}/examples/a.parquet"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        saes = {"3": {"files": [{"file": "sae_weights.safetensors", "sha256": digest}]}}
        write_json(run / PROVENANCE_FILE, {"saes": saes})
        runs.append(run)
    joined = join(runs, tmp_path / "joined")
    assert len(joined.series) == n_series
    assert ("sae.path" in joined.series[0].label) == (n_series == 2)


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match="holds no sweep and no run"):
        join_sweep(tmp_path)
    with pytest.raises(SteerlensError, match="is no folder"):
        join_sweep(tmp_path / "nothing")


def test_a_sweep_in_which_nothing_is_done_says_so(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep", jobs=1)
    save_failed_job(sweep / "0", {"layer": "9"}, {"state": "failed", "reason": "no layer."})
    assert not join_sweep(sweep).complete
    assert json.loads((sweep / "summary.json").read_text())["series"] == []
    assert not (sweep / "features.parquet").exists()


def test_a_sweep_that_ended_before_its_first_job_is_joined_to_nothing(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    assert join_sweep(sweep).jobs == []
    assert csv(sweep).empty


def test_merging_takes_settings_of_the_first_run() -> None:
    one, two = (RunTables(frame([n]), late_from=4, operator="ablate") for n in range(2))
    merged = merge([one, two])
    assert (merged.late_from, merged.operator) == (4, "ablate")


@pytest.mark.slow
def test_the_whole_sweep_is_one_wandb_run_in_the_group_of_its_jobs(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    for job in ("0", "1"):
        folder = save_job(sweep / job, {"seed": job})
        text = (folder / "config.yaml").read_text()
        text = text.replace("mode: disabled", "mode: offline")
        (folder / "config.yaml").write_text(text.replace("group: null", "group: demo sweep"))
    join_sweep(sweep)
    (first,) = (sweep / "wandb").glob("offline-run-*/run-*.wandb")
    data = first.read_bytes()
    files = [str(file) for file in first.parent.rglob("*")]
    for written in (b"demo sweep", b"summary", b"sweep.table.json", b"scores_by_layer"):
        assert written in data or any(written.decode() in file for file in files)
    save_job(sweep / "2", {"seed": "2"})
    join_sweep(sweep)
    # The file's name is the run's id; two runs of one second get folders with a suffix beside it.
    written_runs = [file.name for file in (sweep / "wandb").glob("offline-run-*/run-*.wandb")]
    assert written_runs == [first.name] * 2  # uploaded, both are the same run
