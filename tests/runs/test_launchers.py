"""Multiruns from the command line, with every launcher, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens.results import FEATURES, GENERATIONS, STEERING
from steerlens.storage.files import read_json
from tests.support.frames import assert_identical
from tests.support.slurm import save_slurm
from tests.support.tiny import save_model, save_sae

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words for a tiny model with SAEs at layers 1 and 3, and one of another model."""
    root = tmp_path_factory.mktemp("subject")
    for layer in (1, 3):
        save_sae(root / "saes" / f"layer_{layer}", layer=layer, seed=layer)
    save_sae(root / "other", layer=1, metadata={"model_name": "gpt2-small"})
    return [
        *("model=local", f"model.path={save_model(root / 'model')}", "sae=local"),
        *(f"sae.path={root / 'saes'}", f"paths.cache_dir={root / 'cache'}"),
        *("tracking.mode=disabled", "device=cpu", "dtype=float32"),
    ]


@pytest.fixture
def steerlens(subject: list[str], tmp_path: Path) -> Run:
    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        keys = {word.partition("=")[0] for word in words}
        fixed = [word for word in subject if word.partition("=")[0] not in keys]
        return subprocess.run(
            [sys.executable, "-m", "steerlens", *fixed, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )

    return run


@pytest.fixture(scope="module")
def plain(subject: list[str], tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What one run of both layers finds, without a sweep and without a cache."""
    out = tmp_path_factory.mktemp("plain")
    words = [*subject, f"paths.output_dir={out / 'out'}", f"paths.cache_dir={out / 'cache'}"]
    command = [sys.executable, "-m", "steerlens", *words, "score.factor=7"]
    subprocess.run(command, check=True, capture_output=True)
    return FEATURES.read(out / "out")


def words_of(launcher: str) -> list[str]:
    ray = [f"+hydra.launcher.ray.init.{key}" for key in ("num_cpus=2", "include_dashboard=false")]
    return ["-m", f"hydra/launcher={launcher}", *(ray if launcher == "ray" else [])]


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", "ray", "slurm"])
def test_every_launcher_gives_what_one_run_gives(
    steerlens: Run, plain: pd.DataFrame, tmp_path: Path, launcher: str
) -> None:
    slurm = save_slurm(tmp_path / "slurm")
    out = tmp_path / "out"
    done = steerlens(
        *words_of(launcher),
        *("layer=1,3", "score.factor=7", f"paths.output_dir={out}"),
        *(f"paths.cache_dir={tmp_path / 'cache'}",),
        PATH=f"{slurm}{os.pathsep}{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    joined = FEATURES.read(out)
    assert joined["job"].drop_duplicates().tolist() == ["0", "1"]
    assert_identical(joined.loc[:, list(plain)], plain)
    assert (out / "figures" / "output_score_by_layer.png").is_file()
    if launcher == "slurm":
        submitted = (slurm / "submitted.sh").read_text()
        for flag in ("array=0-1%2", "gpus-per-node=1", "time=240", "mem=64GB"):
            assert f"#SBATCH --{flag}" in submitted


def test_the_same_command_again_runs_only_what_is_missing_or_failed(
    steerlens: Run, subject: list[str], tmp_path: Path
) -> None:
    root = Path(subject[1].partition("=")[2]).parent
    sweep = ["-m", f"sae.path={root / 'saes'},{root / 'other'}", "layer=1,3", "features.n=4"]
    first = steerlens(*sweep)
    assert first.returncode == 1
    (out,) = (tmp_path / "outputs" / "run").iterdir()
    states = [read_json(out / str(job) / "status.json") for job in range(4)]
    assert [state["state"] for state in states] == ["done", "done", "failed", "failed"]
    assert "belongs to the model gpt2-small" in states[2]["reason"]
    assert "Job 2 failed: " in first.stdout
    assert len(FEATURES.read(out)) == 8
    (out / "1" / "status.json").unlink()  # as if it had been killed
    kept = (out / "0" / "features.parquet").stat().st_mtime_ns
    again = steerlens(*sweep)
    assert again.returncode == 1
    assert again.stdout.count("is done already") == 1
    assert (out / "0" / "features.parquet").stat().st_mtime_ns == kept
    assert read_json(out / "1" / "status.json")["state"] == "done"
    assert len(list((tmp_path / "outputs" / "run").iterdir())) == 1


def test_a_refused_job_shows_no_numbers_of_the_job_before_it(
    steerlens: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["features.n=4", f"paths.output_dir={out}"]
    assert steerlens("-m", "layer=1,3", *words).returncode == 0
    again = steerlens("-m", "layer=1,99", *words)
    assert again.returncode == 1
    assert "Job 1 failed: layer 99 doesn't exist" in again.stdout
    rows = pd.read_csv(out / "sweep.csv")
    assert rows["state"].tolist() == ["done", "failed"]
    assert rows["layer"].tolist() == [1, 99]
    assert set(FEATURES.read(out)["layer"]) == {1}


def test_shards_that_steer_are_joined_to_what_the_whole_gives(
    steerlens: Run, tmp_path: Path
) -> None:
    words = ["features.n=7", "steer=grid", "steer.factors=[1,4]", "generation.max_new_tokens=4"]
    words += ['generation.prompts=["Note that","In the"]', "score=output"]
    whole = steerlens(*words, f"paths.output_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    cache = f"paths.cache_dir={tmp_path / 'cache'}"
    parts = steerlens(
        "-m", *words, "shard=2/3,0/3,1/3", cache, f"paths.output_dir={tmp_path / 'parts'}"
    )
    assert parts.returncode == 0, parts.stderr
    for table in (FEATURES, STEERING):
        expected, joined = table.read(tmp_path / "whole"), table.read(tmp_path / "parts")
        assert_identical(joined.loc[:, list(expected)], expected)
    texts = [GENERATIONS.read(tmp_path / "parts" / job) for job in "120"]
    expected = GENERATIONS.read(tmp_path / "whole")
    by_layer = pd.concat(texts).sort_values("layer", kind="stable", ignore_index=True)
    assert_identical(by_layer, expected)
    one = read_json(tmp_path / "parts" / "summary.json")["series"][0]
    two = read_json(tmp_path / "whole" / "summary.json")
    for key in ("layers", "steering"):
        assert one[key] == two[key]


def test_a_killed_sweep_goes_on_and_joins(steerlens: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["-m", "layer=1,3", "features.n=4", f"paths.output_dir={out}"]
    assert steerlens(*words).returncode == 0
    before = json.loads((out / "summary.json").read_text())
    for file in ("summary.json", "features.parquet"):  # a join that was interrupted
        (out / file).unlink()
    record: dict[str, Any] = read_json(out / "sweep.json")
    del record["joined"]
    (out / "sweep.json").write_text(json.dumps(record))
    done = steerlens(*words)
    assert done.returncode == 0
    assert done.stdout.count("is done already") == 2
    assert json.loads((out / "summary.json").read_text()) == before


def test_optuna_finds_the_best_of_a_few_trials(steerlens: Run, tmp_path: Path) -> None:
    done = steerlens(
        *("experiment=optuna", "-m", "hydra.sweeper.n_trials=3", "features.n=3"),
        *("hydra.sweeper.params.layer='choice(1,3)'", "generation.max_new_tokens=3"),
        *('generation.prompts=["Note that"]', f"paths.output_dir={tmp_path / 'out'}"),
        "generation.n_prompts=1",
        "choice.success_cap=100",
    )
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "out" / "optimization_results.yaml").read_text()
    values = [
        read_json(tmp_path / "out" / job / "summary.json")["objective"]["value"] for job in "012"
    ]
    assert f"best_value: {max(values)}" in found
    assert len(set(values)) >= 1


@pytest.mark.parametrize(
    ("word", "extra"),
    [
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_local", "submitit"),
        ("hydra/launcher=slurm", "submitit"),
        ("hydra/launcher=ray", "ray"),
        ("hydra/sweeper=optuna", "optuna"),
        ("experiment=optuna", "optuna"),
    ],
)
def test_a_missing_plugin_is_told_with_how_to_install_it(word: str, extra: str) -> None:
    code = f"""
import hydra_plugins
hydra_plugins.__path__ = []
from steerlens.cli import main
main(["-m", {word!r}, "layer=1,2"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs a plugin that isn't installed: " in done.stderr
    assert f"pip install -c constraints.txt -e '.[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
