"""What a job's key depends on, and what tells jobs apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlens.config.compose import compose, compose_tree, count_jobs
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES
from steerlens.results.status import Status, note_failure
from steerlens.runs.sweep import begin
from steerlens.runs.sweep.jobs import Job, find_jobs, job_key, settings_of, start_job
from steerlens.storage.files import read_json, write_json
from tests.support.frames import frame
from tests.support.sweeps import DONE, save_run, save_sweep

pytestmark = pytest.mark.usefixtures("undrawn_figures")


def job(name: str, **overrides: str) -> Job:
    return Job(Path(), name, "done", None, None, overrides)


def test_a_job_that_has_done_the_same_is_not_run_again(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    config = compose(["layer=3"])
    folder = sweep / "0"
    folder.mkdir()
    assert not start_job(folder, sweep, config, ["layer=3"])
    assert not start_job(folder, sweep, config, ["layer=3"])  # nothing there yet
    save_run(folder)
    assert start_job(folder, sweep, config, ["layer=3"])
    assert not start_job(folder, sweep, compose(["layer=4"]), ["layer=4"])
    start_job(folder, sweep, config, ["layer=3"])
    write_json(folder / "status.json", {**DONE, "state": "failed"})
    assert not start_job(folder, sweep, config, ["layer=3"])
    assert read_json(folder / "job.json")["overrides"] == {"layer": "3"}


def test_a_refused_job_is_not_what_another_has_finished_in_its_folder(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep")
    folder = sweep / "1"
    folder.mkdir()
    start_job(folder, sweep, compose(["layer=3"]), ["layer=3"])
    with Status(folder):
        FEATURES.write(frame(), folder)
    assert find_jobs(sweep)[0].state == "done"
    assert not start_job(folder, sweep, compose(["layer=4"]), ["layer=4"])
    # Killed here, it is no more done than after it has been refused.
    assert find_jobs(sweep)[0].state == "running"
    note_failure(folder, SteerlensError("layer 4 doesn't exist."))
    (refused,) = find_jobs(sweep)
    assert (refused.state, refused.reason) == ("failed", "layer 4 doesn't exist.")
    assert not start_job(folder, sweep, compose(["layer=3"]), ["layer=3"])


@pytest.mark.parametrize(
    "words", [["paths.output_dir=x"], ["tracking.mode=offline"], ["debug=true"], ["name=x"]]
)
def test_where_and_how_a_job_runs_is_not_in_its_key(words: list[str]) -> None:
    assert job_key(compose(words)) == job_key(compose([]))


@pytest.mark.parametrize("words", [["seed=1"], ["steer=grid"], ["objective=success", "steer=grid"]])
def test_what_a_job_finds_is_in_its_key(words: list[str]) -> None:
    assert job_key(compose(words)) != job_key(compose([]))


def test_a_changed_input_file_is_another_key(tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    file.write_text('{"3": [1]}')
    config = compose(["features=file", f"features.file={file}"])
    before = job_key(config)
    assert job_key(config) == before
    file.write_text('{"3": [1, 2]}')
    assert job_key(config) != before


def test_settings_are_those_that_differ() -> None:
    jobs = [job("0", **{"sae": "a", "layer": "3", "seed": "0"}), job("1", sae="b", layer="3")]
    assert settings_of(jobs) == {"0": {"sae": "a", "seed": "0"}, "1": {"sae": "b"}}


def test_of_runs_an_option_of_a_group_counts_as_one_setting(tmp_path: Path) -> None:
    runs = []
    for name, words in (("a", ["sae=smollm2-topk"]), ("b", ["sae=smollm2-batchtopk", "seed=3"])):
        folder = save_run(tmp_path / name)
        config = compose(words)
        import dataclasses

        import yaml

        (folder / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
        runs += find_jobs(folder)
    assert settings_of(runs) == {
        "a": {"sae": "smollm2-topk", "seed": "0"},
        "b": {"sae": "smollm2-batchtopk", "seed": "3"},
    }


def test_jobs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    sweep = save_sweep(tmp_path / "sweep", jobs=11)
    assert [one.name for one in find_jobs(sweep)] == [str(n) for n in range(11)]


@pytest.mark.parametrize(
    ("words", "n"),
    [
        (["layer=1,2,3", "seed=0,1"], 6),
        (["layer=1,2", "layer=1,2,3"], 3),
        (["layer=range(0,4)", "seed=5"], 4),
        (["score=glob(*)"], None),
        (["steer.factors=interval(0,1)"], None),
        (["layer=3"], 1),
    ],
)
def test_jobs_are_counted_before_they_run(words: list[str], n: int | None) -> None:
    counted = count_jobs(words)
    assert counted == n if n else counted is None or counted > 5


def test_the_same_command_goes_on_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["layer=1,2", "seed=3"]
    tree = compose_tree(["layer=1", "seed=3"])
    first = begin(words, tree)
    assert not first.goes_on
    again = begin(["seed=3", "layer=1,2", "tracking.mode=disabled"], compose_tree(["seed=3"]))
    assert again == type(again)(first.folder, first.id, goes_on=True)
    other = begin(["layer=1,2", "seed=4"], compose_tree(["seed=4"]))
    assert not other.goes_on
    assert other.folder != first.folder


def test_a_folder_named_by_the_command_line_counts(tmp_path: Path) -> None:
    word = f"paths.output_dir={tmp_path / 'a'}"
    sweep = begin([word, "layer=1,2"], compose_tree([word]))
    assert sweep.folder == tmp_path / "a"
    assert read_json(sweep.folder / "sweep.json")["jobs"] == 2
