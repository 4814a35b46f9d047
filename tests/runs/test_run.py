"""Whole runs from the command line, on tiny subjects: what they leave behind, and how they fail."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from steerlens.results import FEATURES, NULL_SCORES
from tests.support import command
from tests.support.tiny import D_SAE, save_model, save_sae

pytestmark = pytest.mark.usefixtures("undrawn_figures", "compared_once")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for layer in (1, 3):
        save_sae(tmp_path / "saes" / f"layer_{layer}", layer=layer, seed=layer)
    return {
        "model": save_model(tmp_path / "model"),
        "saes": tmp_path / "saes",
        "out": tmp_path / "out",
    }


@pytest.fixture
def steerlens(folders: dict[str, Path], tmp_path: Path) -> Run:
    """Runs the command, in this process but where it has an environment or a limit of its own;
    later words overwrite earlier ones."""

    def run(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        typed = [
            *("model=local", f"model.path={folders['model']}"),
            *("sae=local", f"sae.path={folders['saes']}", "tracking.mode=disabled"),
            *(f"paths.output_dir={folders['out']}", f"paths.cache_dir={tmp_path / 'cache'}"),
            *("device=cpu", "dtype=float32", "seed=0", *words),
        ]
        last = {word.partition("=")[0]: word for word in typed}
        typed = [word for word in typed if last[word.partition("=")[0]] == word]
        if kwargs:
            words = (sys.executable, "-m", "steerlens", *typed)
            return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, **kwargs)
        return command.steerlens(*typed, folder=tmp_path)

    return run


def state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def assert_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("steerlens: ")]
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]


def test_a_run_leaves_everything_in_its_folder(steerlens: Run, folders: dict[str, Path]) -> None:
    done = steerlens("score=output", 'score.prompt="From my experience,"', "score.factor=10")
    assert done.returncode == 0, done.stderr
    out = folders["out"]
    assert state(out)["state"] == "done"
    frame = pd.read_parquet(out / "features.parquet")
    assert list(frame.columns)[: len(FEATURES.columns)] == list(FEATURES.columns)
    assert frame[["layer", "feature"]].to_numpy().tolist() == [
        [layer, feature] for layer in (1, 3) for feature in range(D_SAE)
    ]
    assert all(0 <= score <= 1 for score in frame["output_score"])
    assert len(frame["input_score"].dropna()) == 0
    null = NULL_SCORES.read(out)
    for layer, rows in frame.groupby("layer"):
        scores = null.loc[null["layer"] == layer, "output_score"].to_numpy(float)
        assert len(scores) == 499
        counts = [(scores >= score).sum() for score in rows["output_score"]]
        assert rows["output_score_p"].tolist() == [(1 + count) / 500 for count in counts]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["score"]["output"]["factor"] == 10.0
    assert config["paths"]["output_dir"] == str(out)
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["versions"]["torch"].startswith("2.")
    assert provenance["saes"]["3"]["hook_name"] == "blocks.3.hook_resid_post"
    assert json.loads((out / "summary.json").read_text())["overall"]["features"] == 2 * D_SAE
    suffixes = {file.suffix for file in (out / "figures").iterdir()}
    assert suffixes == {".png", ".pdf"}
    assert (out / "report.html").is_file()
    assert "Best output features" in done.stdout
    assert "998 random directions" in " ".join(done.stdout.split())
    assert "HYDRA" not in done.stdout + done.stderr
    assert not list(out.parent.glob("outputs*"))


@pytest.mark.slow
def test_a_run_that_steers_shows_it_and_report_shows_the_same(
    steerlens: Run, folders: dict[str, Path]
) -> None:
    words = ("layer=3", "features.ids=[1,2,3]", "steer.factors=[1,4]", "generation.n_prompts=2")
    done = steerlens(*words, timeout=300)  # the figures of two processes, down to their bytes
    assert done.returncode == 0, done.stderr
    out = folders["out"]
    summary = json.loads((out / "summary.json").read_text())["steering"]
    assert (summary["features"], summary["texts"]) == (3, 3 * 3 * 2)
    assert summary["moved"] is True
    assert "3 features were steered in 18 texts." in done.stdout
    assert "## Steering" in (out / "report.md").read_text()

    def shown() -> dict[str, bytes]:
        files = [out / "summary.json", out / "report.md", *(out / "figures").iterdir()]
        return {file.name: file.read_bytes() for file in files}

    before = shown()
    report = [sys.executable, "-m", "steerlens", "report", str(out)]
    again = subprocess.run(report, capture_output=True, text=True, check=True)
    assert shown() == before
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_a_missing_webtext_is_refused_before_anything_is_made(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("nltk")
    nowhere = {**os.environ, "NLTK_DATA": str(tmp_path), "HOME": str(tmp_path)}
    done = steerlens("corpus=webtext", "score=input", env=nowhere)
    assert_refused(done, "python -m nltk.downloader webtext")
    assert not (folders["out"] / "config.yaml").exists()


def test_two_runs_with_the_same_seed_are_equal(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        words = ("features=random", "features.n=5", "paths.report=false")
        done = steerlens(*words, f"paths.output_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / name / "report.html").exists()
    a, b = FEATURES.read(tmp_path / "a"), FEATURES.read(tmp_path / "b")
    pd.testing.assert_frame_equal(a, b)
    assert len(a) == 10


def test_random_directions_are_a_setting_and_an_earlier_runs_are_cleared(
    steerlens: Run, folders: dict[str, Path]
) -> None:
    assert steerlens("layer=1", "score.null_directions=7").returncode == 0
    null = NULL_SCORES.read(folders["out"])
    assert null["direction"].tolist() == list(range(7))
    done = steerlens("layer=1", "score.null_directions=0")
    assert done.returncode == 0, done.stderr
    assert not (folders["out"] / NULL_SCORES.file).exists()
    assert all(FEATURES.read(folders["out"])["output_score_p"].isna())
    assert_refused(steerlens("score.null_directions=-1"), "null_directions=-1", "at least 0")


def test_ids_and_layer_choose_rows(steerlens: Run, folders: dict[str, Path]) -> None:
    assert steerlens("layer=3", "features.ids=[7,2]").returncode == 0
    frame = FEATURES.read(folders["out"])
    assert frame["layer"].tolist() == [3, 3]
    assert frame["feature"].tolist() == [7, 2]


def test_several_scores_are_nested(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the my Note that\n" * 30)
    corpus = ("corpus=text", f"corpus.path={text}")
    done = steerlens("score=all", "score.output.factor=0", "layer=1", *corpus)
    assert done.returncode == 0, done.stderr
    delta = FEATURES.read(folders["out"])["output_score_delta"].to_numpy(float)
    assert abs(delta).max() < 1e-7


def test_a_plan_says_what_would_run_and_leaves_nothing(
    steerlens: Run, folders: dict[str, Path]
) -> None:
    done = steerlens("plan=true")
    assert done.returncode == 0, done.stderr
    for part in ("layers", "1, 3", "features", str(2 * D_SAE), "time", "memory", "disk"):
        assert part in done.stdout
    assert not folders["out"].exists()


def test_a_finished_run_is_redrawn_without_its_model(
    steerlens: Run, folders: dict[str, Path]
) -> None:
    assert steerlens("layer=1").returncode == 0
    shutil.rmtree(folders["model"])
    shutil.rmtree(folders["out"] / "figures")
    done = command.steerlens("report", str(folders["out"]), folder=folders["out"])
    assert done.returncode == 0, done.stderr
    assert list((folders["out"] / "figures").glob("*.png"))


def test_wandb_lies_in_the_runs_folder(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    done = steerlens("layer=1", "tracking.mode=offline")
    assert done.returncode == 0, done.stderr
    assert list(folders["out"].glob("wandb/offline-run-*/*.wandb"))
    assert not (tmp_path / "wandb").exists()


def test_the_default_folder_is_under_outputs_and_each_run_has_its_own(
    steerlens: Run, tmp_path: Path
) -> None:
    words = ["name=mine", "layer=1", "paths.output_dir=outputs/${name}/${now:%f}"]
    for _ in range(2):
        done = steerlens(*words)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs" / "mine").glob("*/features.parquet"))) == 2


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["score=outptu"], ["outptu", "output"]),
        (["score.promt=x"], ["promt", "prompt"]),
        (["layer=9"], ["9", "0 to 3"]),
        (["layer=2"], ["no SAE at layer 2"]),
        (["features.ids=[1,48]"], ["48", "0 to 47"]),
        (["features.ids=[1.5]"], ["1.5", "integer"]),
        (['score.prompt=""'], ["prompt", "empty"]),
        (["tracking.mode=ofline"], ["ofline", "offline"]),
        (["memory_budget=lots"], ["lots", "2GiB"]),
    ],
)
def test_bad_input_is_one_sentence(
    steerlens: Run, folders: dict[str, Path], words: list[str], parts: list[str]
) -> None:
    assert_refused(steerlens(*words), *parts)
    assert state(folders["out"])["state"] == "failed"
    assert {file.name for file in folders["out"].iterdir()} == {"status.json"}


def test_truncated_weights_are_one_sentence(steerlens: Run, folders: dict[str, Path]) -> None:
    weights = folders["model"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])
    assert_refused(steerlens(), "model.safetensors", "truncated")
    assert state(folders["out"])["state"] == "failed"


def test_an_unwritable_folder_is_one_sentence(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(steerlens(f"paths.output_dir={tmp_path / 'file' / 'out'}"), str(tmp_path))


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(
    steerlens: Run, folders: dict[str, Path]
) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = steerlens("layer=1", "hydra.output_subdir=null", preexec_fn=limit)
    assert_refused(done, "write")
    assert state(folders["out"])["state"] == "failed"
    assert not (folders["out"] / "features.parquet").exists()
    assert not list(folders["out"].rglob("*tmp*"))


def test_with_debug_the_traceback_is_shown(steerlens: Run) -> None:
    done = steerlens("layer=9", "debug=true")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_finished_layers_survive_an_interruption(steerlens: Run, folders: dict[str, Path]) -> None:
    _with_nan(folders["saes"])
    assert_refused(steerlens(), "NaN", "W_enc")
    assert state(folders["out"])["state"] == "failed"
    assert set(FEATURES.read(folders["out"])["layer"]) == {1}


def test_a_failing_rerun_leaves_the_earlier_results_and_says_so(
    steerlens: Run, folders: dict[str, Path]
) -> None:
    out = folders["out"]
    assert steerlens("layer=1").returncode == 0
    before = {path.name: path.read_bytes() for path in out.glob("*.*")}
    done = steerlens("layer=[1,3]", f"sae.path={_with_nan(folders['saes'])}")
    assert_refused(done, "NaN")
    assert "has results of other settings, layer=1 (now [1, 3])" in done.stderr
    after = {path.name: path.read_bytes() for path in out.glob("*.*")}
    assert {**after, "status.json": b""} == {**before, "status.json": b""}
    assert state(out)["state"] == "failed"
    report = command.steerlens("report", str(out), folder=out)
    assert report.stdout.startswith("the last run failed (the SAE")


def _with_nan(saes: Path) -> Path:
    """The SAEs, the last of them damaged."""
    from safetensors.torch import load_file, save_file

    weights = saes / "layer_3" / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_enc"][0, 0] = float("nan")
    save_file(tensors, weights)
    return saes


def test_a_multirun_gives_each_job_a_folder_and_goes_on_after_a_failure(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    done = steerlens("-m", "layer=1,3", sweep, "paths.output_dir=unused")
    assert done.returncode == 0, done.stderr
    layers = [set(FEATURES.read(tmp_path / "sweep" / job)["layer"]) for job in ("0", "1")]
    assert layers == [{1}, {3}]
    # Of jobs the joined result has the page.
    assert not list((tmp_path / "sweep").glob("*/report.html"))


@pytest.mark.slow
def test_jobs_have_pages_where_they_are_asked_for(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    words = ("features=random", "features.n=3", "paths.report=true", "paths.output_dir=unused")
    done = steerlens("-m", "layer=1,3", sweep, *words)
    assert done.returncode == 0, done.stderr
    pages = [*(tmp_path / "sweep").rglob("report.html")]
    assert {page.parent.name for page in pages} == {"0", "1", "sweep"}


def test_input_scores_come_from_a_text_file(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the w{20 + i % 30} Note that w{i + 60}" for i in range(90)))
    words = ["score=input", "corpus=text", f"corpus.path={text}", "layer=3"]
    done = steerlens(
        *words, "score.min_examples=5", "score.max_examples=30", "score.context_length=16"
    )
    assert done.returncode == 0, done.stderr
    frame = FEATURES.read(folders["out"])
    assert max(frame["input_examples"].tolist()) == 30
    few = (frame["input_examples"] < 5).tolist()
    assert frame["input_score"].isna().tolist() == few
    assert frame["input_score_unique"].isna().tolist() == few
    assert all(frame["output_score"].isna().tolist())
    provenance = json.loads((folders["out"] / "provenance.json").read_text())
    assert provenance["corpus"]["tokens_read"] == 90 * 5
    assert provenance["corpus"]["file"] == "text.txt"
    asked = steerlens(*words, "corpus.n_tokens=1000")
    assert "has 450 tokens, fewer than corpus.n_tokens=1,000" in asked.stderr


def test_all_scores_at_once_draw_both_scores(
    steerlens: Run, folders: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the w{20 + i % 30} Note that w{i + 60}" for i in range(90)))
    done = steerlens("score=all", "corpus=text", f"corpus.path={text}", "score.input.top_k=60")
    assert done.returncode == 0, done.stderr
    frame = FEATURES.read(folders["out"])
    for column in ("output_score", "token_confidence_delta", "max_activation", "random_score"):
        assert all(frame[column].notna().tolist())
    assert (folders["out"] / "figures" / "input_against_output.png").is_file()
    assert (folders["out"] / "figures" / "input_output_by_layer.pdf").is_file()
    summary = json.loads((folders["out"] / "summary.json").read_text())
    assert summary["hybrids"]["features"] == frame["input_score"].count() > 10
    assert "if they were independent" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["corpus.path=nowhere.txt"], "there is no file nowhere.txt"),
        (["corpus.path=null"], "corpus=text needs corpus.path=FILE"),
        (["corpus.path=empty.txt"], "has no text in it"),
        (["corpus=jsonl", "corpus.path=rows.jsonl"], "unknown column"),
        (["corpus=jsonl", "corpus.path=rows.jsonl", "corpus.column=bdoy"], "did you mean 'body'"),
        (["corpus.path=rows.jsonl", "score.min_examples=0"], "min_examples=0 of score input"),
        (["corpus.path=rows.jsonl", "score.context_length=65"], "more than the 64 tokens of"),
        (["corpus.path=rows.jsonl", "corpus.n_tokens=0"], "corpus.n_tokens=0"),
        (["score.source=neuronpedia"], "needs score.path=DIR"),
        (["score.source=neuronpedia", "score.path=nowhere"], "there is no folder nowhere"),
    ],
)
def test_a_corpus_that_can_not_be_read_is_told_in_one_sentence(
    steerlens: Run, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "rows.jsonl").write_text('{"body": "the"}\n')
    source = [] if "corpus=jsonl" in words else ["corpus=text"]
    path = [] if any("corpus.path" in word for word in words) else ["corpus.path=rows.jsonl"]
    assert_refused(steerlens("score=input", *source, *path, *words, "layer=3"), message)
