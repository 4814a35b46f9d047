"""Whole steering runs from the command line, as typed in a shell."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from steerlens.results import FEATURES, GENERATIONS, STEERING
from steerlens.results.pmi import PMI_FILE, Pmi
from tests.support.command import steerlens
from tests.support.frames import assert_identical
from tests.support.generating import ids_of
from tests.support.tiny import save_model, save_sae

pytestmark = pytest.mark.usefixtures("undrawn_figures", "compared_once")

Run = Callable[[str], subprocess.CompletedProcess[str]]

TYPED = """
'features.ids=[1,2,3]' steer=grid steer.operator=add steer.unit=a_max 'steer.factors=[0,0.5,2,8]'
steer.positions=last generation.temperature=0.7 generation.max_new_tokens=12 generation.stop=null
generation.batch_size=64 'generation.prompts=["Note that","In my experience,"]' seed=5
selection.score=output_score selection.threshold=0.0
"""
SCRIPTS_READ = {
    "model", "sae", "hook_name", "layer", "feature", "factor", "prompt", "sample", "text",
    "token_ids", "success_1", "success_5", "success_20", "success_1_ids", "success_5_ids",
    "success_20_ids", "perplexity", "degeneracy", "repetition", "distinct_1", "distinct_2",
    "first_step_kl", "stopped_by", "near_ties", "seed", "control",
}  # fmt: skip


@pytest.fixture(scope="module")
def typed(
    tiny_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    undrawn_figures: None,
    compared_once: None,
) -> tuple[Run, Path]:
    """What runs a command line of a shell, and the folder where it does."""
    folder = tmp_path_factory.mktemp("typed")
    save_sae(folder / "sae", "jumprelu")
    (folder / "model").symlink_to(tiny_folder("llama"))
    common = (
        "model=local model.path=model sae=local sae.path=sae tracking.mode=disabled "
        "device=cpu dtype=float32"
    )

    def run(words: str) -> subprocess.CompletedProcess[str]:
        return steerlens(*shlex.split(f"{common} {words}"), folder=folder)

    return run, folder


@pytest.fixture(scope="module")
def jobs(typed: tuple[Run, Path]) -> list[Path]:
    """The folders of two whole runs, which differ in their batch size."""
    run, folder = typed
    words = TYPED.replace("generation.batch_size=64", "generation.batch_size=64,5")
    # A cache for each: they would find each other's texts.
    caches = "'paths.cache_dir=cache-${generation.batch_size}'"
    done = run(f"--multirun {words} paths.output_dir=out {caches}")
    assert done.returncode == 0, done.stderr
    return [folder / "out" / job for job in ("0", "1")]


@pytest.fixture(scope="module")
def steered(jobs: list[Path]) -> Path:
    """The folder of a whole run."""
    return jobs[0]


def test_a_run_leaves_its_tables(steered: Path) -> None:
    assert json.loads((steered / "status.json").read_text())["state"] == "done"
    for table in (FEATURES, GENERATIONS, STEERING):
        frame = pd.read_parquet(steered / table.file)
        assert list(frame.columns)[: len(table.columns)] == list(table.columns)
    assert set(pd.read_parquet(steered / "generations.parquet").columns) >= SCRIPTS_READ
    seconds = json.loads((steered / "provenance.json").read_text())["seconds"]
    assert set(seconds["2"]) == {"scoring", "steering"}


def test_every_factor_is_there_once_0_included(steered: Path) -> None:
    frame = GENERATIONS.read(steered)
    assert len(frame) == 3 * 4 * 2
    assert not frame.duplicated(["feature", "factor", "prompt", "sample"]).any()
    assert sorted(set(frame["factor"])) == [0.0, 0.5, 2.0, 8.0]
    assert set(frame["feature"]) == {1, 2, 3}
    assert set(frame["prompt"]) == {"Note that", "In my experience,"}
    assert max(map(len, ids_of(frame))) == 12
    assert set(frame["stopped_by"]) <= {"eos", "length"}
    assert set(frame["control"].tolist()) == {pd.NA}
    assert set(frame.loc[frame["factor"] == 0, "first_step_kl"].tolist()) == {0}


def test_steering_has_one_row_for_each_feature_with_its_scores(steered: Path) -> None:
    frame, scored = STEERING.read(steered), FEATURES.read(steered)
    assert frame["feature"].tolist() == [1, 2, 3]
    assert frame["output_score"].tolist() == scored["output_score"].tolist()
    factor = frame["best_factor"]
    assert set(factor.dropna()) <= {0.5, 2.0, 8.0}
    assert min(frame["perplexity_unsteered"].tolist()) > 1
    texts = GENERATIONS.read(steered)
    for row in frame.loc[factor.notna()].to_dict("records"):
        mine = texts[(texts["feature"] == row["feature"]) & (texts["factor"] == row["best_factor"])]
        assert row["success_20"] == mine["success_20"].mean()
        assert row["texts"] == len(mine) == 2


def test_jobs_of_a_multirun_give_the_same_texts_with_any_batch_size(jobs: list[Path]) -> None:
    one, two = (GENERATIONS.read(job) for job in jobs)
    assert set(one["near_ties"]) == {0}
    assert_identical(one, two)
    assert_identical(*(STEERING.read(job) for job in jobs))


def test_a_threshold_that_nothing_passes_is_one_sentence_and_keeps_the_scores(
    typed: tuple[Run, Path],
) -> None:
    run, folder = typed
    done = run(f"{TYPED} selection.threshold=2 paths.output_dir=none paths.cache_dir=cache-64")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no feature has output_score >= 2; the largest is" in done.stderr
    assert len(FEATURES.read(folder / "none")) == 3
    assert not (folder / "none" / "generations.parquet").exists()


def test_pmi_is_counted_in_the_corpus_and_reported_without_it(
    typed: tuple[Run, Path], steered: Path
) -> None:
    run, folder = typed
    assert not (steered / PMI_FILE).exists()  # no input score, no role
    text, out = folder / "text.txt", folder / "pmi"
    text.write_text("".join(f"the w{20 + i} of w{60 + i % 7} my experience\n" for i in range(40)))
    words = (
        "'features.ids=[1,2,3]' score=all score.input.min_examples=1 corpus=text corpus.path="
        f"{text} corpus.n_tokens=150 'steer.factors=[2,8]' generation.n_prompts=4 "
        "generation.stop=null choice.success_cap=100 pmi.window=3 pmi.min_count=1 "
        "pmi.min_together=1 paths.cache_dir=cache paths.output_dir=pmi"
    )
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert "PMI: 150 words" in done.stderr
    found = Pmi.read(out)
    # Six words a line, 25 lines until there are 150.
    assert found.windows == 50
    assert len(found.pairs) + sum(found.dropped.values()) > 0
    assert json.loads((out / "provenance.json").read_text())["corpus"]["file"] == "text.txt"
    report = (out / "report.md").read_bytes()
    assert b"in 50 windows of the corpus" in report
    text.unlink()
    assert steerlens("report", str(out), folder=folder).returncode == 0
    assert (out / "report.md").read_bytes() == report


def test_another_runs_pmi_is_removed(typed: tuple[Run, Path]) -> None:
    run, folder = typed
    stale = folder / "stale" / PMI_FILE
    stale.parent.mkdir()
    stale.write_text("{}")
    (folder / "stale" / "status.json").write_text('{"state": "done"}')
    done = run("'features.ids=[1]' paths.output_dir=stale paths.cache_dir=cache")
    assert done.returncode == 0, done.stderr
    assert not stale.exists()


def test_another_model_judges_the_texts_and_the_run_says_which(
    typed: tuple[Run, Path], steered: Path
) -> None:
    run, folder = typed
    save_model(folder / "judge", "llama", seed=3)
    judge = "model@evaluator=local evaluator.path=judge"
    done = run(f"{TYPED} {judge} paths.output_dir=judged paths.cache_dir=cache-64")
    assert done.returncode == 0, done.stderr
    own, judged = GENERATIONS.read(steered), GENERATIONS.read(folder / "judged")
    assert judged["text"].tolist() == own["text"].tolist()
    assert not set(judged["perplexity"]) & set(own["perplexity"])
    identity = json.loads((folder / "judged" / "provenance.json").read_text())["evaluator"]
    assert identity["files"]


def test_an_evaluator_that_is_not_there_is_one_sentence_before_anything_is_loaded(
    typed: tuple[Run, Path],
) -> None:
    run, folder = typed
    words = f"{TYPED} paths.output_dir=unjudged paths.cache_dir=cache-64"
    done = run(f"{words} model@evaluator=hub evaluator.path=no/such-model")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the model no/such-model isn't on this machine" in done.stderr
    assert not (folder / "unjudged" / FEATURES.file).exists()


def test_python_writes_the_texts_of_a_run(typed: tuple[Run, Path], steered: Path) -> None:
    from steerlens import generate, load_subject

    folder = typed[1]
    paths: dict[str, object] = {"model.path": folder / "model", "sae.path": folder / "sae"}
    subject = load_subject("local", "local", **paths)  # type: ignore[arg-type]
    table = generate(
        subject,
        [1, 2, 3],
        [0.5, 2, 8],
        ["Note that", "In my experience,"],
        seed=5,
        max_new_tokens=12,
        stop=None,
    )
    by = ["feature", "factor", "prompt"]
    of_run = GENERATIONS.read(steered)
    both = [rows.sort_values(by, ignore_index=True) for rows in (of_run, table)]
    assert_identical(*(rows.filter(items=[*by, "text", "seed", "success_20"]) for rows in both))
    near = pd.Series(both[0]["perplexity"] - both[1]["perplexity"]).abs()
    assert near.max() < 1e-3
