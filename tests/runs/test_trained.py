"""The tests' trained subject: what random weights don't show."""

from __future__ import annotations

import math

import pytest
import torch

import steerlens
from steerlens.data.corpus.installed import documents
from tests.support.naive import naive_output_score, unsteered
from tests.support.trained import FOLDER, trained_subject

PROMPT = "From my experience,"


def test_the_fixture_is_at_most_15_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 15e6


def test_no_path_of_the_machine_that_built_it_is_in_it() -> None:
    for path in FOLDER.rglob("*.json"):
        text = path.read_text()
        assert not any(root in text for root in ("/root", "/home", "/work", "/tmp")), path


def test_scores_equal_one_forward_per_feature() -> None:
    subject = trained_subject()
    features = range(0, subject.d_sae, subject.d_sae // 12)
    cache = unsteered(subject, PROMPT)
    for row in steerlens.score_features(subject, features=features).to_dict("records"):
        score, rank, _ = naive_output_score(subject, row["feature"], PROMPT, 10.0, cache=cache)
        assert row["output_score"] == pytest.approx(score, rel=1e-4)
        assert row["output_rank"] == rank


def test_bfloat16_orders_real_features_like_float32() -> None:
    spearmanr = pytest.importorskip("scipy.stats").spearmanr
    scores = [
        steerlens.score_features(trained_subject(dtype=dtype))["output_score"].to_numpy(float)
        for dtype in ("float32", "bfloat16")
    ]
    assert spearmanr(*scores)[0] > 0.99


def test_the_model_predicts_documentation_far_better_than_chance() -> None:
    subject = trained_subject()
    text = next(one.text for one in documents() if len(one.text) > 1000)
    tokens = subject.to_tokens(text[:400])
    loss = subject.lm.bridge(tokens, return_type="loss").item()
    assert loss < 0.7 * math.log(subject.lm.head.d_vocab)


def test_the_sae_explains_most_of_the_residual_stream() -> None:
    subject = trained_subject()
    text = next(one.text for one in documents() if len(one.text) > 1000)
    _, cache = subject.lm.bridge.run_with_cache(subject.to_tokens(text[:400]))
    x_LD = cache[subject.hook_name][0, 1:]
    with torch.no_grad():
        error = (x_LD - subject.sae.decode(subject.sae.encode(x_LD))).pow(2).sum()
    assert error / (x_LD - x_LD.mean(0)).pow(2).sum() < 0.5
