"""The Python interface, as the README shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steerlens
from steerlens import SteerlensError
from steerlens.engine.subject import Subject
from tests.support.tiny import D_SAE, save_sae
from tests.support.trained import trained_subject

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_five_lines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # On the tests' own subject: README's needs a model that may not be on this machine.
    monkeypatch.setattr(steerlens, "load_subject", lambda *names, **layer: trained_subject())
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) <= 5
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    frame = names["frame"]
    assert len(frame) == 100  # type: ignore[arg-type]
    assert frame["output_score"].between(0, 1).all()  # type: ignore[index]
    exec(blocks[1], names)


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, steerlens; assert 'torch' not in sys.modules; print(steerlens.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_misspelt_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_subjet"):
        _ = steerlens.load_subjet  # type: ignore[attr-defined]


def test_all_features_are_scored_without_a_choice(tiny_subject: Callable[..., Subject]) -> None:
    frame = steerlens.score_features(tiny_subject())
    assert frame["feature"].tolist() == list(range(D_SAE))


def test_of_saes_of_several_layers_one_must_be_chosen(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for layer in (1, 3):
        save_sae(tmp_path / f"layer_{layer}", layer=layer)
    paths: dict[str, Any] = {"model.path": tiny_folder("llama"), "sae.path": tmp_path}
    with pytest.raises(SteerlensError, match="choose one: layer=1, say"):
        steerlens.load_subject("local", "local", **paths)


def test_an_unknown_setting_of_a_score_is_refused_with_the_nearest(
    tiny_subject: Callable[..., Subject],
) -> None:
    with pytest.raises(SteerlensError, match="'promt'; did you mean 'prompt'"):
        steerlens.score_features(tiny_subject(), promt="In my experience,")


def test_an_unknown_method_is_refused_with_the_nearest(
    tiny_subject: Callable[..., Subject],
) -> None:
    with pytest.raises(SteerlensError, match="'outputs'; did you mean 'output'"):
        steerlens.score_features(tiny_subject(), "outputs")


def test_features_out_of_range_are_refused(tiny_subject: Callable[..., Subject]) -> None:
    with pytest.raises(SteerlensError, match="no feature 48"):
        steerlens.score_features(tiny_subject(), features=[48])
