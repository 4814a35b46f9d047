"""What is in the hub's cache, and a sweep over models of which only some are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import constants

from steerlens.cli import main
from steerlens.config.compose import compose
from steerlens.config.schema import RunConfig
from steerlens.config.settings import parse_settings
from steerlens.errors import SteerlensError
from steerlens.results import SAES
from steerlens.runs import downloads as cached
from steerlens.runs.downloads import ask_hub_for_nothing, cached_part, refuse_unreachable
from tests.support.hub import save_gemma_scope_2, save_saelens_5, snapshot
from tests.support.markdown import plain
from tests.support.tiny import make_decided, save_model

GEMMA = ["model=gemma-3-270m", "sae=gemma-scope-2-270m"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache for this process."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("requests.get", lambda *args, **kwargs: pytest.fail("asks the hub"))
    return tmp_path / "hub"


@pytest.fixture
def gemma(cache: Path) -> RunConfig:
    """A run of Gemma-3-270M, of whose four SAEs two are in the cache."""
    with snapshot(cache, "google/gemma-3-270m") as model:
        model = save_model(
            model, "gemma3", num_hidden_layers=10, layer_types=["full_attention"] * 10
        )
        make_decided(model)
    with snapshot(cache, "google/gemma-scope-2-270m-pt") as release:
        for layer in (5, 9):
            path = f"resid_post/layer_{layer}_width_16k_l0_medium"
            save_gemma_scope_2(release, path, "google/gemma-3-270m")
    return compose(GEMMA)


def test_only_the_layers_in_the_cache_are_run_and_the_others_named(gemma: RunConfig) -> None:
    part = cached_part(gemma)
    assert part.config is not None
    assert part.config.layer == [5, 9]
    assert part.missing == "layers 12, 15 of gemma-scope-2-270m aren't in the hub's cache"
    late = cached_part(dataclasses.replace(gemma, layer=[9]))
    assert late == (dataclasses.replace(gemma, layer=[9]), None)


def test_a_release_or_a_model_that_is_not_there_is_left_out(gemma: RunConfig, cache: Path) -> None:
    other = dataclasses.replace(gemma.sae, release="gemma-scope-2-270m-pt-att")
    expected = (None, "no SAE of gemma-scope-2-270m is in the hub's cache")
    assert cached_part(dataclasses.replace(gemma, sae=other)) == expected
    assert cached_part(compose(["model=gpt2-small", "sae=gpt2-small-res-jb"])) == (
        None,
        "the model openai-community/gpt2 isn't in the hub's cache",
    )


def test_a_model_that_lacks_one_of_its_files_is_not_there(gemma: RunConfig, cache: Path) -> None:
    (folder,) = (cache / "models--google--gemma-3-270m" / "snapshots").iterdir()
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    weight_map = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert cached_part(gemma).missing == "the model google/gemma-3-270m isn't in the hub's cache"
    weight_map.pop("b")
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert cached_part(gemma).config is not None


def test_what_is_local_needs_no_cache(tmp_path: Path) -> None:
    words = ["model=local", f"model.path={tmp_path}", "sae=local", f"sae.path={tmp_path}"]
    config = compose(words)
    assert cached_part(config) == (config, None)


def test_what_is_not_here_is_refused_with_the_way_to_get_it(
    gemma: RunConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SteerlensError, match="the SAE of layer 12 of gemma-scope-2-270m") as told:
        refuse_unreachable(parse_settings(gemma))
    assert "and HF_HUB_OFFLINE=1 forbids to download it" in str(told.value)
    path = "resid_post/layer_12_width_16k_l0_medium"
    assert f"`hf download google/gemma-scope-2-270m-pt --include '{path}*'`" in str(told.value)
    with pytest.raises(SteerlensError, match="`hf download openai-community/gpt2`, copy its cache"):
        refuse_unreachable(parse_settings(compose(["model=gpt2-small", "sae=gpt2-small-res-jb"])))
    of_hub = compose([*GEMMA, "layer=[5,9]", "score=input", "corpus=hub", "corpus.path=a/b"])
    with pytest.raises(SteerlensError, match="the corpus a/b isn't on this machine"):
        refuse_unreachable(parse_settings(of_hub))
    refuse_unreachable(parse_settings(dataclasses.replace(gemma, layer=[5, 9])))


def test_a_judge_and_instructions_of_the_hub_are_refused_as_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    table1 = ["experiment=table1_embedded", f"paths.cache_dir={tmp_path}"]
    refuse_unreachable(parse_settings(compose(table1)))
    of_hub = parse_settings(compose([*table1, "judge=local", "judge.model=a/judge"]))
    with pytest.raises(SteerlensError, match="the model a/judge isn't on this machine"):
        refuse_unreachable(of_hub)
    folder = [*table1, "concepts=folder", f"concepts.path={tmp_path}"]
    for instructions, way in (
        ("alpaca_eval", "concepts.instructions_path=DIR/alpaca_eval.json"),
        ("genre", "concepts.instructions_path=DIR"),
    ):
        words = [*folder, f"concepts.instructions={instructions}"]
        with pytest.raises(SteerlensError, match=f"instructions .*{way}.$"):
            refuse_unreachable(parse_settings(compose(words)))
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "morality.json").write_text("[]")
    refuse_unreachable(parse_settings(compose([*folder[:-1], f"concepts.path={pairs}"])))
    own = tmp_path / "own.json"
    own.write_text("[]")
    refuse_unreachable(parse_settings(compose([*folder, f"concepts.instructions_path={own}"])))


def test_without_a_network_the_hub_is_not_asked_for_what_is_here(
    gemma: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(cached, "_reaches", lambda address: True)
    refuse_unreachable(parse_settings(gemma))
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(cached, "_reaches", lambda address: False)
    with pytest.raises(SteerlensError, match=r"and huggingface.co can't be reached; where"):
        refuse_unreachable(parse_settings(gemma))
    assert not constants.HF_HUB_OFFLINE
    refuse_unreachable(parse_settings(dataclasses.replace(gemma, layer=[5, 9])))
    assert constants.HF_HUB_OFFLINE


def test_an_address_without_a_server_is_not_reached() -> None:
    assert not cached._reaches("http://127.0.0.1:9")


def test_a_gguf_of_a_wheel_is_no_name_on_the_hub() -> None:
    assert cached_part(compose([])).config is not None


def test_the_hub_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not huggingface_hub.is_offline_mode()
    ask_hub_for_nothing()
    assert huggingface_hub.is_offline_mode()


@pytest.mark.slow
def test_model_types_compares_what_is_there_and_names_the_rest(
    tmp_path: Path, cache: Path, gemma: RunConfig, undrawn_figures: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with snapshot(cache, "openai-community/gpt2") as model:
        make_decided(save_model(model, "gpt2"))
    with snapshot(cache, "jbloom/GPT2-Small-SAEs-Reformatted") as release:
        for layer in (1, 3):
            path = f"blocks.{layer}.hook_resid_pre"
            save_saelens_5(release, path, model_name="gpt2-small", hook_name=path)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"w{12 + i % 190} w{12 + 7 * i % 190} the my" for i in range(400)))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main([
            *("experiment=model_types", "subject=pythia-70m,gemma-3-270m,gpt2-small", "layer=all"),
            *("features.n=4", "features.min_examples=1", "generation.n_prompts=2"),
            *("generation.max_new_tokens=4", "steer.factors=[0.4,20]", "quality.n_tokens=100"),
            *("corpus.source=text", f"corpus.path={text}", "corpus.context_length=16"),
            *("dtype=float32", "device=cpu", "model.n_params=1e6", "tracking.mode=disabled"),
            *(f"paths.output_dir={out}", f"paths.cache_dir={tmp_path / 'cache'}"),
        ])  # fmt: skip
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["jobs"] == {"done": 2, "left out": 1}
    assert summary["failed"] == {}
    left_out = [
        "job 0 left out: the model EleutherAI/pythia-70m-deduped isn't in the hub's cache",
        "job 1 done: layers 12, 15 of gemma-scope-2-270m aren't in the hub's cache",
        "job 2 done: layers 0, 2, 4, 5, 6, 7, 8, 9, 10, 11 of gpt2-small-res-jb aren't in the "
        "hub's cache",
    ]
    assert summary["left_out"] == left_out
    report = plain((out / "report.md").read_text())
    for line in left_out:
        assert line in report
        assert line.removeprefix("job") in shown
    by_layer = pd.read_csv(out / "releases_by_layer.csv")
    depth = by_layer.groupby("release")["depth"].apply(list).to_dict()
    assert depth["subject=gpt2-small"] == pytest.approx([1 / 3, 1])
    assert depth["subject=gemma-3-270m"] == pytest.approx([5 / 9, 1])
    assert any("models output scores rise" in line for line in summary["study"]["sentences"])
    assert (out / "figures" / "releases_by_layer.png").stat().st_size > 0
    assert set(SAES.read(out / "1")["n_layers"]) == {10}
