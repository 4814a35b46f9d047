"""The lens precision against one forward for each feature and prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from steerlens import SteerlensError
from steerlens.config.prompts import PROMPTS, effect_prompts, held_out_prompts
from steerlens.config.schema import LensConfig
from steerlens.engine.lens import promoted_tokens
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.scores.lens_precision import Config, score
from tests.support.naive import naive_logit_lens, naive_steered_logits
from tests.support.tiny import D_VOCAB

MakeSubject = Callable[..., Subject]
FEATURES = np.array([5, 30, 47])
HELD_OUT = [PROMPTS[1], PROMPTS[3]]


def naive_rising(subject: Subject, feature: int, factor: float, k: int) -> set[int]:
    rises = [
        naive_steered_logits(subject, feature, prompt, factor)[0].softmax(-1)
        - naive_steered_logits(subject, feature, prompt, 0.0)[0].softmax(-1)
        for prompt in HELD_OUT
    ]
    return set(torch.stack(rises).mean(dim=0).topk(k).indices.tolist())


@pytest.mark.parametrize(
    ("kind", "architecture", "lens"),
    [("gemma2", "topk", "logit"), ("neox", "jumprelu", "effect")],
)
def test_equals_the_share_of_tokens_that_one_forward_each_says_rise(
    tiny_subject: MakeSubject, kind: str, architecture: str, lens: str
) -> None:
    subject = tiny_subject(kind, architecture, layer=1)
    run = RunContext(lens=LensConfig(lens, n_prompts=3, factor=4.0), memory_budget=2_000_000)
    config = Config(top_k=40, prompts=HELD_OUT, factor=4.0)
    of_lens = promoted_tokens(subject, torch.from_numpy(FEATURES), 40, run)
    expected = []
    for feature, tokens in zip(FEATURES.tolist(), of_lens.tolist(), strict=True):
        own = naive_logit_lens(subject, feature, 40).tolist() if lens == "logit" else tokens
        expected.append(len(set(own) & naive_rising(subject, feature, 4.0, 40)) / 40)
    found = score(subject, FEATURES, config, run)["lens_precision"]
    assert found.tolist() == pytest.approx(expected)
    assert max(expected) > 0
    alone = score(subject, FEATURES[1:2], config, run.for_group())["lens_precision"]
    assert alone.tolist() == found[1:2].tolist()


def test_all_tokens_of_the_vocabulary_rise_among_as_many(tiny_subject: MakeSubject) -> None:
    found = score(tiny_subject(), FEATURES, Config(top_k=D_VOCAB), RunContext())
    assert found["lens_precision"].tolist() == [1.0] * len(FEATURES)


def test_the_prompts_are_none_of_the_effect_lens(tiny_subject: MakeSubject) -> None:
    assert not set(held_out_prompts(50)) & set(effect_prompts(50))
    seen = Config(prompts=[PROMPTS[1], PROMPTS[2]])
    with pytest.raises(SteerlensError, match="'In general,' is one that the effect lens"):
        score(tiny_subject(), FEATURES, seen, RunContext(lens=LensConfig("effect", n_prompts=2)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompts": []}, "give at least one, none empty"),
        ({"prompts": [" "]}, "give at least one, none empty"),
        ({"factor": 0.0}, "factor=0.0.* nothing can rise"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        Config(**settings).check()


def test_more_tokens_than_there_are_are_refused(tiny_subject: MakeSubject) -> None:
    with pytest.raises(SteerlensError, match=f"top_k={D_VOCAB + 1}|{D_VOCAB + 1} is out of range"):
        score(tiny_subject(), FEATURES, Config(top_k=D_VOCAB + 1), RunContext())
