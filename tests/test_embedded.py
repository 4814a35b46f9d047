"""The embedded default: loads like any other subject, and is what its card says."""

from __future__ import annotations

import json
import math

import pytest
import torch

import steerlens
from steerlens.corpus.installed import documents
from tests.support.embedded import FOLDER, RELEASES, needs_embedded
from tests.support.naive import naive_output_score

pytestmark = needs_embedded
PROMPT = "From my experience,"


def card() -> dict:
    return json.loads((FOLDER / "card.json").read_text())


def test_there_are_two_releases_with_every_layer() -> None:
    n_layers = card()["settings"]["model"]["n_layers"]
    assert len(RELEASES) == 2
    for release in RELEASES:
        found = {path.parent.name for path in (FOLDER / release).glob("*/sae_weights.safetensors")}
        assert found == {f"layer_{layer}" for layer in range(n_layers)}


def test_what_ships_is_at_most_40_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 40e6


def test_no_path_of_the_machine_that_built_it_ships() -> None:
    for path in FOLDER.rglob("*.json"):
        text = path.read_text()
        assert not any(root in text for root in ("/root", "/home", "/work", "/tmp")), path


@pytest.mark.parametrize("release", ["embedded-topk", "embedded-batchtopk"])
def test_scores_equal_one_forward_per_feature(release: str) -> None:
    subject = steerlens.load_subject("embedded", release, layer=2)
    features = range(0, subject.d_sae, subject.d_sae // 12)
    for row in steerlens.score_features(subject, features=features).to_dict("records"):
        score, rank, _ = naive_output_score(subject, row["feature"], PROMPT, 10.0)
        assert row["output_score"] == pytest.approx(score, rel=1e-4)
        assert row["output_rank"] == rank


def test_bfloat16_orders_real_features_like_float32() -> None:
    spearmanr = pytest.importorskip("scipy.stats").spearmanr
    scores = [
        steerlens.score_features(
            steerlens.load_subject("embedded", "embedded-topk", layer=3, dtype=dtype)
        )["output_score"].to_numpy(float)
        for dtype in ("float32", "bfloat16")
    ]
    assert spearmanr(*scores)[0] > 0.99


def test_the_model_predicts_documentation_far_better_than_chance() -> None:
    subject = steerlens.load_subject("embedded", "embedded-topk", layer=0)
    text = next(one.text for one in documents() if len(one.text) > 1000)
    tokens = subject.to_tokens(text[:400])
    loss = subject.lm.bridge(tokens, return_type="loss").item()
    assert loss < 0.7 * math.log(subject.lm.head.d_vocab)


@pytest.mark.parametrize("release", ["embedded-topk", "embedded-batchtopk"])
def test_the_saes_explain_most_of_the_residual_stream(release: str) -> None:
    subject = steerlens.load_subject("embedded", release, layer=4)
    text = next(one.text for one in documents() if len(one.text) > 1000)
    _, cache = subject.lm.bridge.run_with_cache(subject.to_tokens(text[:400]))
    x_LD = cache[subject.hook_name][0, 1:]
    with torch.no_grad():
        error = (x_LD - subject.sae.decode(subject.sae.encode(x_LD))).pow(2).sum()
    assert error / (x_LD - x_LD.mean(0)).pow(2).sum() < 0.5
