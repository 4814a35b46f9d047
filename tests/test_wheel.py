"""The wheel: it carries the configuration and the embedded default, and runs anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.embedded import needs_embedded

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation the build needs nothing from the network.
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run(unpacked: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "steerlens", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)


def test_the_wheel_carries_its_configuration(unpacked: Path) -> None:
    assert (unpacked / "steerlens" / "conf" / "config.yaml").is_file()


@needs_embedded
def test_the_wheel_carries_the_embedded_weights(unpacked: Path) -> None:
    assert (unpacked / "steerlens" / "embedded" / "model" / "model.safetensors").is_file()
    assert list((unpacked / "steerlens" / "embedded").glob("sae-*/layer_0/sae_weights.safetensors"))


def test_the_wheel_composes_and_lists_outside_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    shown = run(unpacked, tmp_path, "--cfg", "job", "--resolve")
    assert shown.returncode == 0, shown.stderr
    assert str(unpacked / "steerlens" / "embedded" / "model") in shown.stdout
    assert "gemma-2-2b" in run(unpacked, tmp_path, "list", "models").stdout


@needs_embedded
def test_the_wheel_scores_the_embedded_default(unpacked: Path, tmp_path: Path) -> None:
    words = ["layer=0", "features.ids=[0,1]", "tracking.mode=disabled", "paths.output_dir=out"]
    done = run(unpacked, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "features.parquet").is_file()
