"""Token confidence, mean logit, prompt robustness and random scores against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steerlens import SteerlensError, score_features
from steerlens.config.registry import load_part
from steerlens.engine.subject import Subject
from steerlens.scores import prompt_robustness
from tests.support.naive import naive_output_score, naive_steered_logits, unsteered
from tests.support.tiny import D_SAE, D_VOCAB

MakeSubject = Callable[..., Subject]
PROMPT = "From my experience,"
PROBES = range(0, D_SAE, 7)


@pytest.mark.parametrize("k", [1, 5, D_VOCAB])
@pytest.mark.parametrize(("kind", "site"), [("gemma2", "resid_post"), ("llama", "mlp_out")])
def test_token_confidence_equals_one_forward_per_feature(
    tiny_subject: MakeSubject, kind: str, site: str, k: int
) -> None:
    subject = tiny_subject(kind, "topk", site=site)
    frame = score_features(subject, "token_confidence", PROBES, k=k, memory_budget=60_000)

    cache = unsteered(subject, PROMPT)

    def confidence(feature: int, factor: float) -> float:
        logits, _ = naive_steered_logits(subject, feature, PROMPT, factor, cache=cache)
        return -float(logits.log_softmax(-1).topk(k).values.mean())

    for feature, delta in zip(PROBES, frame["token_confidence_delta"], strict=True):
        expected = confidence(feature, 10.0) - confidence(feature, 0.0)
        assert delta == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_factor_zero_changes_no_confidence(tiny_subject: MakeSubject) -> None:
    frame = score_features(tiny_subject(), "token_confidence", factor=0.0)
    assert np.abs(frame["token_confidence_delta"].to_numpy(float)).max() < 1e-5


@pytest.mark.parametrize("k", [0, D_VOCAB + 1])
def test_a_k_beyond_the_vocabulary_is_refused(tiny_subject: MakeSubject, k: int) -> None:
    with pytest.raises(SteerlensError, match=f"k={k}"):
        score_features(tiny_subject(), "token_confidence", k=k)


@pytest.mark.parametrize("k", [1, 20, D_VOCAB])
@pytest.mark.parametrize(("kind", "site"), [("gemma2", "resid_post"), ("llama", "attn.hook_z")])
def test_mean_logit_is_the_mean_of_the_largest_entries_of_the_unembedded_row(
    tiny_subject: MakeSubject, kind: str, site: str, k: int
) -> None:
    subject = tiny_subject(kind, site=site)
    frame = score_features(subject, "mean_logit", PROBES, top_k=k, memory_budget=60_000)
    bridge, W_dec = subject.lm.bridge, subject.sae.W_dec
    for feature, mean in zip(PROBES, frame["mean_logit"], strict=True):
        row_D = W_dec[feature]
        if site == "attn.hook_z":
            row_D = row_D @ bridge.blocks[subject.layer].attn.W_O.flatten(0, -2)
        h_D = bridge.ln_final(row_D[None, None])[0, 0]
        logits_V = subject.lm.head.weight @ h_D  # Gemma-2's soft cap left out
        assert mean == pytest.approx(float(logits_V.topk(k).values.mean()), rel=1e-5, abs=1e-6)


def test_mean_logit_refuses_more_tokens_than_there_are(tiny_subject: MakeSubject) -> None:
    with pytest.raises(SteerlensError, match=f"top_k={D_VOCAB + 1} is out of range"):
        score_features(tiny_subject(), "mean_logit", top_k=D_VOCAB + 1)


def test_prompt_robustness_is_the_output_score_under_every_prompt(
    tiny_subject: MakeSubject,
) -> None:
    subject = tiny_subject()
    prompts = ["the", "In my experience,", "Note that"]
    frame = score_features(subject, "prompt_robustness", [3, 11], prompts=prompts)
    for row in frame.to_dict("records"):
        scores = [naive_output_score(subject, row["feature"], one, 10.0)[0] for one in prompts]
        assert list(row["output_score_by_prompt"]) == pytest.approx(scores, rel=1e-4)
        assert row["output_score_mean"] == pytest.approx(np.mean(scores), rel=1e-4)
        assert row["output_score_std"] == pytest.approx(np.std(scores), rel=1e-3)


@pytest.mark.parametrize("prompts", [["the"], ["the", " "], []])
def test_prompt_robustness_needs_two_prompts(prompts: list[str]) -> None:
    prompt_robustness.Config(prompts=["the", "Note that"]).check()
    with pytest.raises(SteerlensError, match="two or more, none empty"):
        prompt_robustness.Config(prompts=prompts).check()


def test_random_scores_depend_on_seed_layer_and_feature_alone(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    every = score_features(subject, "random", seed=1)["random_score"].to_numpy(float)
    some = score_features(subject, "random", [40, 3], seed=1)["random_score"].tolist()
    assert some == [every[40], every[3]]
    other = score_features(subject, "random", seed=2)["random_score"].to_numpy(float)
    assert not np.intersect1d(every, other).size
    assert 0 <= every.min() <= every.max() < 1


def test_methods_are_given_ids_that_torch_takes_without_a_warning(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = load_part("scores", "random")
    real, given = method.score, []

    def noted(subject: Subject, features: np.ndarray, *rest: Any) -> Any:
        given.append(features)
        return real(subject, features, *rest)

    monkeypatch.setattr(method, "score", noted)
    score_features(tiny_subject(), "random", range(4))
    assert given
    assert all(features.flags.writeable for features in given)
