"""SAELens' real loading code, offline, on caches of the hub that the tests fill.

Every layer, width and path is what the release has; what the tests make smaller is the model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from huggingface_hub import constants

from steerlens import SteerlensError
from steerlens.config.compose import compose
from steerlens.config.settings import parse_settings, parse_subject
from steerlens.engine.subject import Subject, WeightCache, load_subjects
from steerlens.results import FEATURES
from steerlens.runs.downloads import refuse_unreachable
from tests.support.hub import (
    COMMIT,
    Weights,
    save_dictionary_learning,
    save_gemma_scope,
    save_gemma_scope_2,
    save_llama_scope,
    save_qwen_scope,
    save_saelens,
    save_saelens_5,
    snapshot,
)
from tests.support.naive import naive_output_score
from tests.support.scoring import scored
from tests.support.tiny import D_SAE, save_model

PROMPT = "From my experience,"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache for this process, which is offline already."""
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def score(tmp_path: Path, *words: str) -> tuple[pd.DataFrame, dict[str, Any], Subject]:
    """The table and the provenance of a run that scores a few features, and its subject."""
    settings = [
        *("score=output", f'score.prompt="{PROMPT}"', "score.factor=10", "features.ids=[3,17,40]"),
        *("device=cpu", "dtype=float32", "tracking.mode=disabled"),
        *(f"paths.output_dir={tmp_path / 'out'}", f"paths.cache_dir={tmp_path / 'cache'}"),
        # The entry's size would be refused where there is little memory.
        "model.n_params=1e6",
    ]
    config, weights = compose([*words, *settings]), WeightCache()
    refuse_unreachable(parse_settings(config))
    frame = scored(config, tmp_path / "out", weights)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    subject = next(load_subjects(parse_subject(config), weight_cache=weights))
    return frame, provenance, subject


def assert_same_weights(subject: Subject, weights: Weights) -> None:
    loaded = dict(subject.sae.named_parameters())
    assert loaded.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(loaded[name], weight, msg=name)


def assert_naive_scores(frame: pd.DataFrame, subject: Subject) -> None:
    assert frame["feature"].tolist() == [3, 17, 40]
    for row in frame.to_dict("records"):
        value, rank, probability = naive_output_score(subject, row["feature"], PROMPT, 10.0)
        assert row["output_rank"] == rank
        assert row["output_score"] == pytest.approx(value, abs=1e-4)
        assert row["output_probability"] == pytest.approx(probability, abs=1e-4)


@pytest.mark.slow
def test_the_command_loads_an_entry_from_the_hubs_cache(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    with snapshot(cache, "openai-community/gpt2") as model:
        save_model(model, "gpt2")
    with snapshot(cache, "jbloom/GPT2-Small-SAEs-Reformatted") as release:
        path = "blocks.2.hook_resid_pre"
        save_saelens_5(release, path, model_name="gpt2-small", hook_name=path)
    out = tmp_path / "out"
    words = ["model=gpt2-small", "sae=gpt2-small-res-jb", "layer=2"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "steerlens", *words, "tracking.mode=disabled"),
            *(f"paths.output_dir={out}", f"paths.cache_dir={tmp_path / 'cache'}"),
        ],
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    frame = FEATURES.read(out)
    assert frame["hook_name"].unique().tolist() == ["blocks.2.hook_resid_pre"]
    assert len(frame) == D_SAE
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["model"]["revision"] == COMMIT
    assert provenance["model"]["processing"]["center_writing_weights"] is True
    assert provenance["saes"]["2"]["revision"] == COMMIT
    assert provenance["saes"]["2"]["path"] == "blocks.2.hook_resid_pre"


@pytest.mark.slow
def test_gemma_scope_loads_at_its_true_size(tmp_path: Path, cache: Path) -> None:
    with snapshot(cache, "google/gemma-2-2b") as model:
        # Small weights, or the last token itself would be all but certain to come next.
        save_model(model, "gemma2", hidden_size=2304, initializer_range=0.004)
    with snapshot(cache, "google/gemma-scope-2b-pt-res") as release:
        weights = save_gemma_scope(release, "layer_2/width_16k/average_l0_141")
    words = ["model=gemma-2-2b", "sae=gemma-scope-2b-res", "layer=2"]
    frame, provenance, subject = score(tmp_path, *words)
    assert_same_weights(subject, weights)
    assert subject.sae.cfg.d_in == 2304
    assert subject.d_sae == 16384
    assert subject.prepend_bos
    assert_naive_scores(frame, subject)
    assert frame["hook_name"].unique().tolist() == ["blocks.2.hook_resid_post"]
    assert provenance["model"]["repo_id"] == "google/gemma-2-2b"
    assert provenance["model"]["revision"] == COMMIT
    sae = provenance["saes"]["2"]
    assert (sae["repo_id"], sae["revision"]) == ("google/gemma-scope-2b-pt-res", COMMIT)
    assert sae["path"] == "layer_2/width_16k/average_l0_141"
    assert (sae["architecture"], sae["d_sae"]) == ("jumprelu", 16384)


@pytest.mark.slow
def test_qwen_scope_loads_at_its_true_size(tmp_path: Path, cache: Path) -> None:
    with snapshot(cache, "Qwen/Qwen3-1.7B-Base") as model:
        save_model(model, "qwen3", hidden_size=2048)
    repo_id = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    with snapshot(cache, repo_id) as release:
        weights = save_qwen_scope(release, "layer2.sae.pt")
    words = ["model=qwen3-1.7b", "sae=qwen-scope-3-1.7b", "layer=2"]
    frame, provenance, subject = score(tmp_path, *words)
    assert_same_weights(subject, weights)
    assert_naive_scores(frame, subject)
    sae = provenance["saes"]["2"]
    assert (sae["repo_id"], sae["path"]) == (repo_id, "layer2.sae.pt")
    assert (sae["architecture"], sae["d_sae"]) == ("topk", 32768)


def test_llama_scope_loads_with_its_scale_folded_in(tmp_path: Path, cache: Path) -> None:
    with snapshot(cache, "meta-llama/Llama-3.1-8B") as model:
        save_model(model, "llama")
    with snapshot(cache, "fnlp/Llama3_1-8B-Base-LXR-8x") as release:
        # 64 / 2.34375, the real layer's: SAELens' list of releases has the same number.
        weights = save_llama_scope(release, "Llama3_1-8B-Base-L2R-8x", 2, scale=27.30666666666667)
    words = ["model=llama-3.1-8b", "sae=llama-scope-8x", "layer=2"]
    frame, provenance, subject = score(tmp_path, *words)
    assert_same_weights(subject, weights)
    assert_naive_scores(frame, subject)
    sae = provenance["saes"]["2"]
    assert (sae["path"], sae["revision"]) == ("Llama3_1-8B-Base-L2R-8x", COMMIT)
    assert (sae["architecture"], sae["normalize_activations"]) == ("jumprelu", "none")
    assert sae["hook_name"] == "blocks.2.hook_resid_post"


def test_a_release_in_saelens_format_loads(tmp_path: Path, cache: Path) -> None:
    with snapshot(cache, "google/gemma-3-1b-pt") as model:
        save_model(model, "gemma3")
    repo_id = "chanind/gemma-3-1b-batch-topk-matryoshka-saes-w-32k-l0-40"
    path = "blocks.2.hook_resid_post"
    with snapshot(cache, repo_id) as release:
        metadata = {"model_name": "google/gemma-3-1b-pt"}
        weights = save_saelens(release, path, architecture="jumprelu", metadata=metadata)
    frame, provenance, subject = score(
        tmp_path,
        *("model=gemma-3-1b", "sae=release", "sae.release=gemma-3-1b-res-matryoshka-dc"),
        *('sae.sae_id="blocks.{layer}.hook_resid_post"', "layer=2"),
    )
    assert_same_weights(subject, weights)
    assert_naive_scores(frame, subject)
    sae = provenance["saes"]["2"]
    assert (sae["repo_id"], sae["path"], sae["revision"]) == (repo_id, path, COMMIT)


def test_a_release_older_than_saelens_6_loads(tmp_path: Path, cache: Path) -> None:
    with snapshot(cache, "EleutherAI/pythia-70m-deduped") as model:
        save_model(model, "neox")
    with snapshot(cache, "ctigges/pythia-70m-deduped__res-sm_processed") as release:
        hook_name = "blocks.3.hook_resid_post"
        weights = save_saelens_5(release, "3-res-sm", "pythia-70m-deduped", hook_name)
    words = ["model=pythia-70m-deduped", "sae=pythia-70m-res", "layer=3"]
    frame, provenance, subject = score(tmp_path, *words)
    assert_same_weights(subject, weights)
    assert_naive_scores(frame, subject)
    assert provenance["saes"]["3"]["path"] == "3-res-sm"
    assert provenance["model"]["processing"] == "none"


@pytest.mark.parametrize(
    ("dict_class", "sweep", "architecture"),
    [
        ("AutoEncoder", "standard_ctx128_0712", "standard"),
        ("AutoEncoderTopK", "topk_ctx128_0730", "topk"),
        ("GatedAutoEncoder", "gated_ctx128_0730", "gated"),
    ],
)
def test_a_release_of_dictionary_learning_loads(
    tmp_path: Path, cache: Path, dict_class: str, sweep: str, architecture: str
) -> None:
    with snapshot(cache, "EleutherAI/pythia-70m-deduped") as model:
        save_model(model, "neox")
    path = f"pythia70m_sweep_{sweep}/resid_post_layer_3/trainer_2"
    with snapshot(cache, "canrager/lm_sae") as release:
        lm_name = "EleutherAI/pythia-70m-deduped"
        weights = save_dictionary_learning(release, path, dict_class, lm_name, layer=3)
    frame, provenance, subject = score(
        tmp_path,
        *("model=pythia-70m-deduped", "sae=release", "layer=3"),
        f"sae.release=sae_bench_pythia70m_sweep_{sweep}",
        'sae.sae_id="blocks.{layer}.hook_resid_post__trainer_2"',
    )
    assert_same_weights(subject, weights)
    assert_naive_scores(frame, subject)
    sae = provenance["saes"]["3"]
    assert (sae["architecture"], sae["path"], sae["revision"]) == (architecture, path, COMMIT)


def test_a_batchtopk_of_dictionary_learning_loads_with_its_threshold(
    tmp_path: Path, cache: Path
) -> None:
    with snapshot(cache, "google/gemma-2-2b") as model:
        save_model(model, "gemma2", num_hidden_layers=13, layer_types=["full_attention"] * 13)
    path = "MatryoshkaBatchTopK_gemma-2-2b__0108/resid_post_layer_12/trainer_0"
    with snapshot(cache, "adamkarvonen/saebench_gemma-2-2b_width-2pow12_date-0108") as release:
        kind, lm_name = "MatryoshkaBatchTopKSAE", "google/gemma-2-2b"
        weights = save_dictionary_learning(release, path, kind, lm_name, layer=12)
    frame, provenance, subject = score(
        tmp_path,
        *("model=gemma-2-2b", "sae=release", "layer=12"),
        "sae.release=saebench_gemma-2-2b_width-2pow12_date-0108",
        'sae.sae_id="blocks.{layer}.hook_resid_post__trainer_0"',
    )
    assert_same_weights(subject, weights)
    assert_naive_scores(frame, subject)
    assert provenance["saes"]["12"]["architecture"] == "jumprelu"


@pytest.mark.parametrize(
    ("settings", "path", "layer", "hook_name"),
    [
        ([], "resid_post/layer_5_width_16k_l0_medium", 5, "blocks.5.hook_resid_post"),
        (["sae.site=att"], "attn_out/layer_5_width_16k_l0_medium", 5, "blocks.5.attn.hook_z"),
        (
            ["sae.site=mlp-all", "sae.l0=small"],
            "mlp_out_all/layer_2_width_16k_l0_small", 2, "blocks.2.hook_mlp_out",
        ),
        (
            ["sae.site=transcoders-all", "sae.width=262k", "sae.l0=big_affine"],
            "transcoder_all/layer_2_width_262k_l0_big_affine", 2, "blocks.2.hook_mlp_in",
        ),
    ],
)  # fmt: skip
def test_gemma_scope_2_loads_from_the_cache_at_each_site(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch,
    settings: list[str], path: str, layer: int, hook_name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("requests.get", lambda *args, **kwargs: pytest.fail("asks the hub"))
    with snapshot(cache, "google/gemma-3-270m") as model:
        save_model(model, "gemma3", num_hidden_layers=6, layer_types=["full_attention"] * 6)
    with snapshot(cache, "google/gemma-scope-2-270m-pt") as release:
        weights = save_gemma_scope_2(release, path, "gemma-v3-270m-pt")
    words = ["model=gemma-3-270m", "sae=gemma-scope-2-270m", f"layer={layer}", *settings]
    frame, provenance, subject = score(tmp_path, *words)
    assert_same_weights(subject, weights)
    assert_naive_scores(frame, subject)
    assert subject.hook_name == hook_name
    sae = provenance["saes"][str(layer)]
    assert (sae["repo_id"], sae["path"]) == ("google/gemma-scope-2-270m-pt", path)


def test_an_sae_that_is_in_no_cache_is_told_offline(tmp_path: Path, cache: Path) -> None:
    with snapshot(cache, "google/gemma-3-1b-pt") as model:
        save_model(model, "gemma3", num_hidden_layers=8, layer_types=["full_attention"] * 8)
    with pytest.raises(SteerlensError, match=r"the SAE of layer 7 of gemma-scope-2-1b-res isn't"):
        score(tmp_path, "model=gemma-3-1b", "sae=gemma-scope-2-1b-res", "layer=7")
