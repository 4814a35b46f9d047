"""SAE folders of other libraries: loaded as SAELens' own converters do, or named with the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steerlens import SteerlensError, load_subject
from steerlens.config.folders import sae_facts, sae_folders
from steerlens.engine.subject import Subject
from tests.support.hub import Weights, random_weights, save_dictionary_learning
from tests.support.tiny import D_MODEL, D_SAE, save_model, save_sae


def load(tmp_path: Path, sae: Path, layer: Any = 2) -> Subject:
    model = tmp_path / "model"
    if not model.is_dir():
        save_model(model)
    paths = {"model.path": model, "sae.path": sae, "paths.cache_dir": tmp_path / "cache"}
    aliases = {"model.aliases": ["tiny", "gemma-2-2b-it"]}
    return load_subject("local", "local", layer, **paths, **aliases)


def some_vectors() -> torch.Tensor:
    return torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(3))


def assert_weights(subject: Subject, weights: Weights) -> None:
    found = dict(subject.sae.named_parameters())
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(found[name], weight), name


def save_sparsify(folder: Path, **settings: Any) -> Weights:
    weights = random_weights()
    folder.mkdir(parents=True)
    config = {
        "expansion_factor": 1.5,
        "normalize_decoder": True,
        "num_latents": D_SAE,
        "k": 6,
        "multi_topk": False,
        "skip_connection": False,
        "activation": "topk",
        "d_in": D_MODEL,
        **settings,
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    stored = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    save_file(stored, folder / "sae.safetensors")
    return weights


def topk(pre_BF: torch.Tensor, k: int) -> torch.Tensor:
    top = pre_BF.relu().topk(k, dim=-1)
    return torch.zeros_like(pre_BF).scatter(-1, top.indices, top.values)


def test_a_folder_of_sparsify(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "layers.2"
    weights = save_sparsify(folder)
    (folder.parent / "config.json").write_text(json.dumps({"model": "org/tiny"}))
    subject = load(tmp_path, folder.parent)
    assert (subject.hook_name, subject.d_sae) == ("blocks.2.hook_resid_post", D_SAE)
    assert subject.sae.cfg.metadata.model_name == "org/tiny"
    assert_weights(subject, weights)
    x_BD = some_vectors()
    expected_BF = topk((x_BD - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 6)
    assert torch.allclose(subject.sae.encode(x_BD), expected_BF, atol=1e-6)
    decoded_BD = expected_BF @ weights["W_dec"] + weights["b_dec"]
    assert torch.allclose(subject.sae.decode(expected_BF), decoded_BD, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"transcode": True}, {"skip_connection": True}, {"activation": "groupmax"}]
)
def test_what_sparsify_has_besides_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    save_sparsify(tmp_path / "layers.2", **settings)
    name, value = next(iter(settings.items()))
    with pytest.raises(SteerlensError, match=f"SAE of sparsify with {name}={str(value).lower()}"):
        load(tmp_path, tmp_path / "layers.2")


def test_a_folder_of_sparsify_may_say_its_hook(tmp_path: Path) -> None:
    save_sparsify(tmp_path / "mine")
    with pytest.raises(SteerlensError, match=r"is of mine, .*into cfg\.json's hook_name"):
        load(tmp_path, tmp_path / "mine", "all")
    config = json.loads((tmp_path / "mine/cfg.json").read_text())
    config["hook_name"] = "blocks.1.hook_resid_pre"
    (tmp_path / "mine/cfg.json").write_text(json.dumps(config))
    assert load(tmp_path, tmp_path / "mine", 1).hook_name == "blocks.1.hook_resid_pre"


@pytest.mark.parametrize(
    ("dict_class", "architecture"),
    [
        ("AutoEncoder", "standard"),
        ("AutoEncoderTopK", "topk"),
        ("GatedAutoEncoder", "gated"),
        ("BatchTopKSAE", "jumprelu"),
        ("MatryoshkaBatchTopKSAE", "jumprelu"),
    ],
)
def test_a_folder_of_dictionary_learning(
    tmp_path: Path, dict_class: str, architecture: str
) -> None:
    weights = save_dictionary_learning(tmp_path, "ae", dict_class, "org/tiny", 2)
    subject = load(tmp_path, tmp_path / "ae")
    assert subject.sae.cfg.architecture() == architecture
    assert subject.hook_name == "blocks.2.hook_resid_post"
    assert_weights(subject, weights)
    x_BD = some_vectors()
    if architecture != "gated":
        pre_BF = (x_BD - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        expected_BF = topk(pre_BF, 6) if architecture == "topk" else pre_BF.relu()
        if architecture == "jumprelu":
            expected_BF = pre_BF * (pre_BF > 0.25)
        assert torch.allclose(subject.sae.encode(x_BD), expected_BF, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("trainer", {"dict_class": "CrossCoder"}),
        ("trainer", {"submodule_name": "resid_pre_layer_2"}),
        ("buffer", {"io": "in"}),
    ],
)
def test_what_dictionary_learning_has_besides_is_named(
    tmp_path: Path, part: str, setting: dict[str, str]
) -> None:
    save_dictionary_learning(tmp_path, "ae", "AutoEncoder", "org/tiny", 2)
    config = json.loads((tmp_path / "ae/config.json").read_text())
    config[part] |= setting
    (tmp_path / "ae/config.json").write_text(json.dumps(config))
    name, value = next(iter(setting.items()))
    with pytest.raises(SteerlensError, match=f"dictionary_learning with {name}={value}"):
        load(tmp_path, tmp_path / "ae")


def save_arrays(folder: Path) -> Weights:
    weights = {**random_weights(), "threshold": torch.rand(D_SAE)}
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {name: weight.numpy() for name, weight in weights.items()}
    np.savez(folder / "params.npz", **arrays)
    return weights


def test_arrays_of_gemma_scope_below_their_repositorys_name(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-it-res" / "layer_2" / "width_16k" / "average_l0_71"
    weights = save_arrays(folder)
    facts = sae_facts(folder)
    assert (facts.layer, facts.d_in, facts.d_sae) == (2, D_MODEL, D_SAE)
    assert facts.model_name == "gemma-2-2b-it"
    subject = load(tmp_path, folder)
    assert subject.prepend_bos
    assert_weights(subject, weights)
    x_BD = some_vectors()
    pre_BF = x_BD @ weights["W_enc"] + weights["b_enc"]
    expected_BF = pre_BF.relu() * (pre_BF > weights["threshold"])
    assert torch.allclose(subject.sae.encode(x_BD), expected_BF, atol=1e-6)


def test_arrays_of_gemma_scope_elsewhere_need_a_hook_and_the_refusal_says_how(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "layer_3" / "width_16k" / "average_l0_71"
    save_arrays(folder)
    with pytest.raises(SteerlensError, match=r"params\.npz is of Gemma Scope") as caught:
        load(tmp_path, folder)
    proposed = str(caught.value).partition("; write ")[2].partition(" into ")[0]
    (folder / "cfg.json").write_text(proposed)
    assert load(tmp_path, folder, 3).hook_name == "blocks.3.hook_resid_post"


def test_a_truncated_file_of_arrays_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-it-res" / "layer_2"
    save_arrays(folder)
    (folder / "params.npz").write_bytes((folder / "params.npz").read_bytes()[:-400])
    with pytest.raises(SteerlensError, match="is truncated or has no matrix W_dec"):
        load(tmp_path, folder)


def test_what_was_converted_in_place_is_read_in_saelens_format(tmp_path: Path) -> None:
    save_sparsify(tmp_path / "layers.2")
    save_sae(tmp_path / "layers.2", "topk")
    assert sae_folders(tmp_path / "layers.2") == [tmp_path / "layers.2"]
    assert sae_facts(tmp_path / "layers.2").model_name == "tiny"
