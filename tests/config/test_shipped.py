"""The distribution with the default's SAEs: found where it is installed, missed in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from steerlens.config import shipped
from steerlens.config.compose import compose
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check
from tests.support.shipped import LAYERS, MODEL, save_distribution

RELEASES = ("smollm2-topk", "smollm2-batchtopk")


def refusal(*overrides: str) -> str:
    with pytest.raises(SteerlensError) as caught:
        check(compose([*MODEL, *overrides]))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "find_spec", lambda name: None)


def test_an_installed_release_is_found_with_all_of_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = save_distribution(tmp_path, RELEASES)
    monkeypatch.syspath_prepend(tmp_path)
    for release in RELEASES:
        config = compose([*MODEL, f"sae={release}"])
        assert config.sae.path == str(module / release)
        check(config)
        for layer in LAYERS:
            check(compose([*MODEL, f"sae={release}", f"layer={layer}"]))


@pytest.mark.parametrize(
    ("layer", "nearest"), [(5, "4 and 9"), (29, "28"), (0, "4"), (27, "24 and 28")]
)
def test_a_layer_that_does_not_ship_is_refused_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int, nearest: str
) -> None:
    save_distribution(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal(f"layer={layer}") == (
        f"sae=smollm2-topk has no SAE at layer {layer}; it has: 4, 9, 14, 19, 24, 28; "
        f"nearest: {nearest}."
    )


@pytest.mark.usefixtures("absent")
def test_without_the_distribution_everything_composes_and_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path(str(compose().sae.path)).name == "smollm2-topk"
    told = "sae=smollm2-topk ships in the distribution steerlens-smollm2, which isn't installed: "
    in_checkout = Path(__file__).parents[2] / "packages" / "smollm2"
    assert refusal() == f"{told}pip install {in_checkout}"
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "lib" / "steerlens")
    assert refusal() == f"{told}pip install steerlens-smollm2"


@pytest.mark.usefixtures("absent")
def test_a_folder_of_the_users_is_not_taken_for_a_release() -> None:
    assert refusal("sae=local", "sae.path=nowhere") == "sae.path: there is no folder nowhere."


def test_a_release_that_an_installed_distribution_lacks_is_told_with_those_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_distribution(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal("sae=smollm2-batchtopk")
    assert "isn't in the installed steerlens-smollm2, which has smollm2-topk: pip inst" in message


def test_torch_is_not_imported_to_say_so() -> None:
    code = (
        "import sys\nfrom steerlens.config import shipped\nshipped.find_spec = lambda name: None\n"
        "from steerlens.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *MODEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert "pip install" in done.stderr
