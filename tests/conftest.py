"""Fixtures: tiny subjects on disk, and no hub."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.drawing import coarse, undrawn

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

if TYPE_CHECKING:
    from steerlens.config.settings import SubjectSettings
    from steerlens.engine.subject import Subject, WeightCache


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    from tests.support.composing import composed_once

    with composed_once():
        yield


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


@contextmanager
def _compared_once(agreements: Path) -> Iterator[None]:
    """While it lasts, no cache has a comparison of its own."""
    from steerlens.engine.subject import agreement

    file = agreement._file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "_file", lambda key, cache_dir: file(key, agreements))
        yield


@pytest.fixture(scope="module")
def compared_once(agreements: Path) -> Iterator[None]:
    """Runs of a module don't compare a model that was compared before."""
    with _compared_once(agreements):
        yield


@pytest.fixture(scope="session")
def _of_folders() -> SubjectSettings:
    """A model and an SAE of folders: composing this takes a third of the time of loading them."""
    from steerlens.config.compose import compose
    from steerlens.config.settings import parse_subject

    return parse_subject(compose(["model=local", "model.path=?", "sae=local", "sae.path=?"]))


@pytest.fixture(scope="session")
def _loaded_models() -> WeightCache:
    from tests.support.loaded import UnchangedModels

    return UnchangedModels()


@pytest.fixture
def tiny_subject(
    tiny_folder: Callable[[str], Path],
    agreements: Path,
    _of_folders: SubjectSettings,
    _loaded_models: WeightCache,
    tmp_path: Path,
) -> Callable[..., Subject]:
    """A loaded subject: `tiny_subject("llama", "topk", layer=2, site="resid_pre", ...)`.

    Its SAE is its own; its model is that of other tests, loaded anew after one that changed it.
    """
    from steerlens.engine.subject import load_subjects
    from tests.support.tiny import save_sae

    def make(kind: str = "llama", architecture: str = "standard", **settings: object) -> Subject:
        sae = save_sae(tmp_path / "sae", architecture, **settings)  # type: ignore[arg-type]
        given = dataclasses.replace(
            _of_folders,
            model=dataclasses.replace(_of_folders.model, path=str(tiny_folder(kind))),
            sae=dataclasses.replace(_of_folders.sae, path=str(sae)),
            cache_dir=tmp_path,
        )
        with _compared_once(agreements):
            return next(load_subjects(given, weight_cache=_loaded_models))

    return make


@pytest.fixture(scope="module")
def quick_figures() -> Iterator[None]:
    """Coarse PNGs and empty PDFs: drawing them properly takes most of a tiny run's time."""
    with coarse():
        yield


@pytest.fixture(scope="module")
def undrawn_figures() -> Iterator[None]:
    """Figures are made, but not drawn: for what isn't about pictures."""
    with undrawn():
        yield
