"""Both wheels, built and installed without a network: what they carry, that they run anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.trained import FOLDER, LAYER

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def done(*command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(command, capture_output=True, text=True, **settings)  # type: ignore[call-overload]
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, by its name."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (ROOT, ROOT / "packages" / "smollm2"):
        # Without isolation the build needs nothing from the network.
        build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder))
        done(sys.executable, *build, str(source))
    return {file.name.partition("-")[0]: file for file in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def site(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both installed; what they need is that of the environment."""
    folder = tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--no-index", "--quiet", "--target", str(folder))
    done(sys.executable, "-m", "pip", "install", *offline, *map(str, wheels.values()))
    return folder


def steerlens(site: Path, cwd: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(site)}
    return done(sys.executable, "-m", "steerlens", *words, env=env, cwd=cwd).stdout


def test_there_are_two_wheels_and_that_of_the_package_is_small(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"steerlens", "steerlens_smollm2"}
    assert wheels["steerlens"].stat().st_size < 3e6


def test_the_package_carries_its_configuration_and_no_weights(site: Path) -> None:
    assert (site / "steerlens" / "conf" / "config.yaml").is_file()
    assert not list((site / "steerlens").rglob("*.safetensors"))


def test_every_release_that_the_repository_has_is_installed_with_licences(site: Path) -> None:
    source = ROOT / "packages" / "smollm2" / "steerlens_smollm2"
    files = {
        file.relative_to(source)
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert Path("licenses", "Apache-2.0.txt") in files
    installed = site / "steerlens_smollm2"
    assert files <= {file.relative_to(installed) for file in installed.rglob("*")}


def test_the_package_finds_what_ships_beside_it_outside_the_checkout(
    site: Path, tmp_path: Path
) -> None:
    shown = steerlens(site, tmp_path, "--cfg", "job", "--resolve")
    assert str(site / "steerlens_smollm2" / "smollm2-topk") in shown
    assert "gemma-2-2b" in steerlens(site, tmp_path, "list", "models")


def test_the_package_scores_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    subject = ("model=local", f"model.path={FOLDER / 'model'}", "sae=local")
    saes = (f"sae.path={FOLDER / 'sae-batchtopk'}", f"layer={LAYER}", "features.ids=[0,1]")
    out = ("tracking.mode=disabled", "paths.output_dir=out", "paths.cache_dir=cache")
    steerlens(site, tmp_path, *subject, *saes, *out)
    assert (tmp_path / "out" / "features.parquet").is_file()
