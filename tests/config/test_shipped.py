"""The distribution with the default's SAEs: found where it is installed, missed in one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from steerlens.config import shipped
from steerlens.config.compose import compose
from steerlens.config.sources import reads_corpus
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


def save_jacobians(
    file: Path, layers: Iterable[int], width: int = 576, model: str = "smollm2-135m-instruct"
) -> None:
    """Write Jacobians of these layers, all 0."""
    layers_S = np.array([*layers])
    J_SDD = np.zeros((len(layers_S), width, width), np.float16)
    save_file({"J": J_SDD, "source_layers": layers_S}, file, {"model": model})


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


def test_the_jacobian_lens_reads_what_ships_unless_other_sequences_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = save_distribution(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = module / "jacobians.safetensors"
    asked = ("lens=jacobian", "layer=all")
    assert compose([*asked]).lens.path is None  # an earlier distribution
    save_jacobians(file, LAYERS)
    ours = compose([*asked])
    assert ours.lens.path == str(file)
    assert not reads_corpus(ours)
    check(ours)
    assert compose([]).lens.path is None
    for other in (
        *("corpus=embedded", "corpus.n_tokens=9000", "lens.n_prompts=8", "lens.context_length=32"),
        *("model=gemma-2-2b", "sae.jacobians=null", "lens=effect"),
    ):
        assert compose([*asked, other]).lens.path is None
    by_hand = tmp_path / "by_hand.safetensors"
    assert compose([*asked, f"lens.path={by_hand}"]).lens.path == str(by_hand)


def test_a_lens_file_of_another_model_or_layer_is_refused_before_torch_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_distribution(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "lens.safetensors"

    def refusal_of(*arguments: Any, **keywords: Any) -> str:
        save_jacobians(file, *arguments, **keywords)
        return refusal("lens=jacobian", "layer=all", f"lens.path={file}")

    assert refusal_of([4, 9]) == f"lens.path={file} has no layer 14, only 4, 9."
    assert "is of a model with vectors of size 8, not of" in refusal_of(LAYERS, width=8)
    assert f"lens.path={file} belongs to the model gemma-2-2b, not to" in refusal_of(
        LAYERS, model="gemma-2-2b"
    )
    file.write_bytes(b"nothing")
    asked = ("lens=jacobian", f"lens.path={file}")
    assert refusal(*asked).startswith(f"lens.path={file} is truncated, or no file with J")
    assert refusal("lens=jacobian", "lens.path=no") == "lens.path: there is no file no."


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
