"""What jobs of one process share, and what they give back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from steerlens.config.compose import compose
from steerlens.config.settings import SubjectSettings, parse_subject
from steerlens.engine.subject import WeightCache, load_subjects
from tests.support.tiny import save_sae


@pytest.fixture
def settings(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., SubjectSettings]:
    for layer in (1, 3):
        save_sae(tmp_path / "saes" / f"layer_{layer}", layer=layer, seed=layer)

    def make(*words: str, kind: str = "llama") -> SubjectSettings:
        paths = [f"model.path={tiny_folder(kind)}", f"sae.path={tmp_path / 'saes'}"]
        words = ("model=local", "sae=local", *paths, "model.aliases=[tiny]", *words)
        return parse_subject(compose(words))

    return make


def test_jobs_share_model_and_saes(settings: Callable[..., SubjectSettings]) -> None:
    weight_cache = WeightCache()
    first = list(load_subjects(settings(), weight_cache=weight_cache))
    second = list(load_subjects(settings("seed=3", "score.factor=5"), weight_cache=weight_cache))
    assert all(one.lm is first[0].lm for one in second)
    assert [one.sae for one in second] == [one.sae for one in first]
    assert weight_cache.size() > sum(one.numel() * 4 for one in first[0].lm.bridge.parameters())


def test_without_it_every_run_loads_its_own(settings: Callable[..., SubjectSettings]) -> None:
    (one, _), (other, _) = (list(load_subjects(settings())) for _ in range(2))
    assert one.lm is not other.lm
    assert one.sae is not other.sae


@pytest.mark.parametrize("words", [["dtype=float16"], ["model.revision=other"]])
def test_what_loading_depends_on_is_loaded_anew(
    settings: Callable[..., SubjectSettings], words: list[str]
) -> None:
    weight_cache = WeightCache()
    first = next(iter(load_subjects(settings(), weight_cache=weight_cache)))
    second = next(iter(load_subjects(settings(*words), weight_cache=weight_cache)))
    assert first.lm is not second.lm


def test_a_model_is_given_back_before_the_next_is_loaded(
    settings: Callable[..., SubjectSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    import steerlens.engine.subject as module

    weight_cache = WeightCache()
    old = weakref.ref(next(iter(load_subjects(settings(), weight_cache=weight_cache))).lm)
    assert old() is not None
    load, alive = module.load_model, []

    def watched(*arguments: object) -> object:
        alive.append(old() is not None)
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "load_model", watched)
    next(iter(load_subjects(settings(kind="gpt2"), weight_cache=weight_cache)))
    assert alive == [False]


def test_saes_beyond_the_budget_are_given_back_oldest_first(
    settings: Callable[..., SubjectSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    import steerlens.engine.subject as module

    loaded: list[int | None] = []
    load = module.load_sae

    def counted(source: module.SaeSource, settings: SubjectSettings) -> object:
        loaded.append(source.layer)
        return load(source, settings)

    monkeypatch.setattr(module, "load_sae", counted)
    weight_cache = WeightCache()
    one = next(iter(load_subjects(settings("layer=1"), weight_cache=weight_cache)))
    size = sum(each.numel() * each.element_size() for each in one.sae.parameters())
    for layer in (1, 3, 3, 1):
        of_layer = replace(settings(f"layer={layer}"), memory_budget=size)
        next(iter(load_subjects(of_layer, weight_cache=weight_cache)))
    assert loaded == [1, 3, 1]


def test_everything_can_be_given_back(settings: Callable[..., SubjectSettings]) -> None:
    weight_cache = WeightCache()
    old = weakref.ref(next(iter(load_subjects(settings(), weight_cache=weight_cache))).lm)
    weight_cache.clear()
    assert weight_cache.size() == 0
    assert old() is None
