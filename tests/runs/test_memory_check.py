"""Weights that can't fit are refused before they are downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlens.config.compose import compose
from steerlens.config.settings import Settings, parse_settings
from steerlens.errors import SteerlensError
from steerlens.runs import memory_check as fit
from tests.config.folders import model_folder, sae_folder

GEMMA = ["model=gemma-2-9b", "sae=gemma-scope-9b-res"]


def settings_of(words: list[str]) -> Settings:
    return parse_settings(compose(words))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 GB of main memory and two GPUs of 10 and 20 GB."""
    monkeypatch.setattr(fit, "main_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(fit, "gpu_memory", lambda: [10 * 10**9, 20 * 10**9])


def test_weights_are_those_of_the_model_and_one_sae_in_the_runs_dtype() -> None:
    sae = 2 * 16384 * 3584
    for dtype, size in [("float32", 4), ("bfloat16", 2)]:
        needed = fit.estimate_weights(settings_of([*GEMMA, f"dtype={dtype}"]))
        assert needed == int((9.242e9 + sae) * size)


def test_a_local_folder_tells_its_size_by_its_headers(tmp_path: Path) -> None:
    model, sae = model_folder(tmp_path / "model"), sae_folder(tmp_path / "saes" / "0")
    sae_folder(tmp_path / "saes" / "1")
    local = ["model=local", f"model.path={model}", "sae=local", f"sae.path={sae.parent}"]
    needed = fit.estimate_weights(settings_of([*local, "dtype=float32"]))
    assert needed == 4 * (10 * 8 + 16 * 8)


def test_nothing_is_refused_where_nothing_tells_the_size() -> None:
    settings = settings_of(["model=hub", "model.path=a/b", "sae=gpt2-small-res-jb"])
    assert fit.estimate_weights(settings) is None
    fit.refuse_if_too_big(settings)


@pytest.mark.usefixtures("machine")
def test_what_fits_passes() -> None:
    fit.refuse_if_too_big(settings_of(GEMMA))  # 18.7 GB in bfloat16 on the larger GPU
    fit.refuse_if_too_big(settings_of([*GEMMA, "device_map=auto", "dtype=float32"]))  # all together


@pytest.mark.usefixtures("machine")
def test_an_evaluator_counts_where_texts_are_steered() -> None:
    pythia = ["subject=pythia-70m", "features=random", "device=cpu"]
    fit.refuse_if_too_big(settings_of(pythia))
    fit.refuse_if_too_big(settings_of([*pythia, "steer=grid", "evaluator=null"]))
    with pytest.raises(SteerlensError) as caught:
        fit.refuse_if_too_big(settings_of([*pythia, "steer=grid"]))
    assert "and the evaluator gemma-2-9b take 18.7 GB" in str(caught.value)
    assert "try evaluator=null or a smaller model" in str(caught.value)


CONCEPTS = ["concepts=embedded", "steer=axbench", "evaluator=null"]


def test_a_local_judge_and_the_copy_that_lora_trains_are_held_at_the_same_time(
    tmp_path: Path,
) -> None:
    model, sae = model_folder(tmp_path / "model"), sae_folder(tmp_path / "sae")
    judge = model_folder(tmp_path / "judge", d_model=100)
    folders = [f"model.path={model}", f"sae.path={sae}"]
    local = ["model=local", "sae=local", *folders, *CONCEPTS, "dtype=float32"]
    own = 10 * 8 + 16 * 8
    for overrides, size in [
        (["judge=lexical", "concepts.methods=[SAE]"], own),
        (["judge=lexical", "concepts.methods=[SAE,LoRA]"], own + 10 * 8),
        (["judge=local", f"judge.model={judge}", "concepts.methods=[SAE]"], own + 10 * 100),
        (["judge=local", f"judge.model={judge}", "concepts.methods=[LoRA]"], own + 10 * 108),
        # What no entry of conf/model says the size of can't be counted before it is downloaded.
        (["judge=local", "judge.model=some/judge", "concepts.methods=[SAE]"], own),
    ]:
        assert fit.estimate_weights(settings_of([*local, *overrides])) == 4 * size
    rates = ["judge=local", f"judge.model={judge}", "choice.rule=judge", "concept=water"]
    of_features = ["model=local", "sae=local", *folders, *rates, "dtype=float32"]
    assert fit.estimate_weights(settings_of(of_features)) == 4 * (own + 10 * 100)


@pytest.mark.usefixtures("machine")
def test_what_a_judge_and_lora_take_is_told_with_how_to_do_without() -> None:
    pythia = ["subject=pythia-70m", "features=random", "device=cpu", *CONCEPTS, "dtype=bfloat16"]
    fit.refuse_if_too_big(settings_of([*pythia, "judge=lexical"]))
    judge = ["judge=local", "judge.model=google/gemma-2-9b-it"]
    with pytest.raises(SteerlensError) as caught:
        fit.refuse_if_too_big(settings_of([*pythia, *judge]))
    assert (
        ", the judge google/gemma-2-9b-it and the copy of pythia-70m-deduped that LoRA trains take "
        in str(caught.value)
    )
    assert "try judge=lexical or concepts.methods without LoRA or a sm" in str(caught.value)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["device=cpu"],
            "the weights of gemma-2-9b and gemma-scope-9b-res take 37.4 GB in float32, but cpu has "
            "16 GB; try dtype=bfloat16 or a smaller model.",
        ),
        (["device=cuda", "dtype=float32"], "cuda has 20 GB; try device_map=auto or dtype=bfloat16"),
        (["device=cuda:0"], "18.7 GB in bfloat16, but cuda has 10 GB; try device_map=auto"),
        (["model.n_params=1e11", "device_map=auto"], "all devices together have 46 GB; try a sm"),
    ],
)
def test_what_cannot_fit_is_told_with_both_numbers_and_ways_out(
    overrides: list[str], expected: str
) -> None:
    with pytest.raises(SteerlensError) as caught:
        fit.refuse_if_too_big(settings_of([*GEMMA, *overrides]))
    assert expected in str(caught.value)


def test_gpus_are_asked_of_the_drivers_own_tool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert fit.gpu_memory() == [81559 * 2**20, 40960 * 2**20]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert fit.gpu_memory() == [40960 * 2**20]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert fit.gpu_memory() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert fit.gpu_memory() == []
    monkeypatch.setenv("PATH", "")
    assert fit.gpu_memory() == []


def test_main_memory_is_some_but_not_more_than_there_is() -> None:
    assert 10**7 < fit.main_memory() < 10**14


@pytest.mark.parametrize(("system", "device", "is_told"), [
    ("Linux", "cuda", True), ("Linux", "cuda:1", True), ("Linux", "mps", True),
    ("Linux", "cpu", False), ("Windows", "cuda", False), ("Darwin", "mps", False),
])  # fmt: skip
def test_a_device_that_is_not_there_is_told_without_torch(
    system: str, device: str, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit.platform, "system", lambda: system)
    monkeypatch.setattr(fit, "GPU_DRIVERS", [])
    monkeypatch.setattr(fit, "gpu_memory", list)
    settings = settings_of([*GEMMA, f"device={device}"])
    if is_told:
        with pytest.raises(SteerlensError, match=f"device={device} is not available here"):
            fit.refuse_absent_device(settings.subject)
    else:
        fit.refuse_absent_device(settings.subject)


def test_a_device_that_may_be_there_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fit.platform, "system", lambda: "Linux")
    monkeypatch.setattr(fit, "gpu_memory", list)
    monkeypatch.setattr(fit, "GPU_DRIVERS", [tmp_path])
    fit.refuse_absent_device(settings_of([*GEMMA, "device=cuda"]).subject)
