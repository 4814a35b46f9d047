"""Features that fire in steered texts and not in unsteered ones, against a loop over tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerlens.analysis.factors import by_factor
from steerlens.config.schema import GenerationConfig, RunConfig, SteerConfig
from steerlens.config.settings import parse_steering
from steerlens.engine.logit_lens import logit_lens
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.steering.features import steer_layer
from steerlens.steering.metrics.drift import FIRED, DriftConfig, measure, with_drift
from steerlens.steering.metrics.texts import MetricRun, Texts

MakeSubject = Callable[..., Subject]


def naive(subject: Subject, prompt: str, ids: list[int], feature: int) -> set[int]:
    own = set(logit_lens(subject, torch.tensor([feature]), 20, 2**30)[0].tolist())
    before = subject.to_tokens(prompt)[0].tolist()
    tokens = torch.tensor([[*before, *ids]])
    _, cache = subject.lm.bridge.run_with_cache(tokens)
    acts_LF = subject.sae.encode(cache[subject.hook_name])[0]
    return {
        int(other)
        for position, token in enumerate(ids, start=len(before))
        if token not in own
        for other in (acts_LF[position] > 0).nonzero()[:, 0]
    }


def test_what_fires_is_read_by_the_unedited_model_on_tokens_that_are_not_the_features_own(
    tiny_subject: MakeSubject,
) -> None:
    subject = tiny_subject("llama", "topk")
    own = int(logit_lens(subject, torch.tensor([5]), 1, 2**30)[0, 0])
    ids = [[30, own, 31], [own], [40, 41, 42, 43, 44], [60, 1]]
    prompts = ["the w20", "the w20", "Note that w21 w22", "the w20"]
    features = np.array([5, 5, 9, 9])
    texts = Texts(features, prompts, ["?"] * 4, ids)
    done: list[int] = []
    columns = measure(texts, subject, DriftConfig(), MetricRun(progress=done.append))
    expected = [
        naive(subject, prompt, [token for token in tokens if token != 1], feature)
        for prompt, tokens, feature in zip(prompts, ids, features.tolist(), strict=True)
    ]
    assert [set(of_text) for of_text in columns[FIRED]] == expected
    assert not expected[1]
    assert expected[2]
    assert sum(done) == 4


def test_drift_is_beside_the_unsteered_text_of_the_same_prompt_and_sample() -> None:
    rows: list[Any] = [
        # feature, control, together, factor, prompt, sample, what fires
        (5, "", "", 0.0, "a", 0, [1, 2]),
        (5, "", "", 3.0, "a", 0, [1, 3, 4, 5]),
        (5, "", "", 0.0, "b", 0, []),
        (5, "", "", 3.0, "b", 0, [5]),
        (5, "", "7+8", 0.0, "a", 0, [1]),
        (5, "", "7+8", 3.0, "a", 0, [5, 7, 9]),
    ]
    names = ["feature", "control", "together", "factor", "prompt", "sample", FIRED]
    texts = pd.DataFrame(rows, columns=pd.Index(names))
    drifted = with_drift(texts)
    assert drifted["drift"].tolist() == [0, 2, 0, 0, 0, 1]
    assert FIRED not in drifted
    plain = texts.drop(columns=FIRED)
    assert with_drift(plain) is plain


@pytest.mark.parametrize("enabled", [True, False])
def test_texts_have_their_drift_only_where_it_is_asked_for(
    tiny_subject: MakeSubject, enabled: bool
) -> None:
    subject = tiny_subject("llama", "topk")
    config = RunConfig(
        steer=SteerConfig(factors=[30.0], controls=["random_direction"]),
        generation=GenerationConfig(prompts=["Note that"], max_new_tokens=5, temperature=0),
        metrics={"drift": DriftConfig(enabled=enabled)},
    )
    settings = parse_steering(config)
    texts = steer_layer(subject, [5, 9], settings, RunContext())
    assert set(texts["drift"].notna()) == {enabled}
    if enabled:
        means = by_factor(texts)
        assert (means.loc[means["factor"] == 0, "drift"] == 0).all()
        # The features' own texts may be of their own tokens alone.
        steered = (means["factor"] == 30) & means["control"].notna()
        assert (means.loc[steered, "drift"] > 0).all()
