"""Fixtures: tiny subjects on disk, and no hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny model of the given kind, made once a session."""
    from tests.support.tiny import save_model

    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_model(tmp_path_factory.mktemp("models") / kind, kind)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def agreements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is kept that the bridge's logits are Hugging Face's, compared once a session."""
    return tmp_path_factory.mktemp("agreements")


@pytest.fixture
def tiny_subject(
    tiny_folder: Callable[[str], Path], agreements: Path, tmp_path: Path
) -> Callable[..., Subject]:
    """A loaded subject: `tiny_subject("llama", "topk", layer=2, site="resid_pre", ...)`."""
    from steerlens import load_subject
    from tests.support.tiny import save_sae

    def make(kind: str = "llama", architecture: str = "standard", **settings: object) -> Subject:
        sae = save_sae(tmp_path / "sae", architecture, **settings)  # type: ignore[arg-type]
        paths = {"model.path": tiny_folder(kind), "sae.path": sae, "paths.cache_dir": tmp_path}
        shutil.copytree(agreements, tmp_path / "agreement", dirs_exist_ok=True)
        subject = load_subject("local", "local", "all", **paths)
        shutil.copytree(tmp_path / "agreement", agreements, dirs_exist_ok=True)
        return subject

    return make


@pytest.fixture(scope="module")
def quick_figures() -> Iterator[None]:
    """Coarse PNGs and empty PDFs: drawing them properly takes most of a tiny run's time."""
    from matplotlib.figure import Figure

    whole = Figure.savefig

    def savefig(figure: Any, file: Any, format: str, **settings: Any) -> None:
        if format == "png":
            whole(figure, file, format=format, dpi=20, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield
