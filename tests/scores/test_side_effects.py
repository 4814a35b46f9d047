"""Side effects against one forward for each feature and prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens import SteerlensError, score_features
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.scores import side_effects
from tests.support.naive_scores import naive_side_effects
from tests.support.tiny import D_SAE

MakeSubject = Callable[..., Subject]
PROMPTS = ["In my experience,", "the", "Note that w40 w41"]
PROBES = [0, 7, 30, 47]


@pytest.mark.parametrize(
    ("kind", "architecture"), [("llama", "standard"), ("gemma2", "topk"), ("gpt2", "jumprelu")]
)
def test_equals_one_forward_for_each_feature_and_prompt(
    tiny_subject: MakeSubject, kind: str, architecture: str
) -> None:
    subject = tiny_subject(kind, architecture, layer=1)
    settings: dict[str, Any] = {"prompts": PROMPTS, "factor": 3.0, "tolerance": 0.3}
    frame = score_features(subject, "side_effects", PROBES, **settings, memory_budget=200_000)
    expected = [naive_side_effects(subject, feature, PROMPTS, 3.0, 0.3) for feature in PROBES]
    np.testing.assert_allclose(
        frame["effect_stability"], [stability for stability, *_ in expected], rtol=1e-3, atol=1e-4
    )
    assert frame["collateral_spread"].tolist() == pytest.approx([same for _, same, _ in expected])
    assert max(frame["collateral_spread"].tolist()) > 1
    assert all(frame["collateral_spread_later"].isna().tolist())


def test_features_of_later_saes_are_counted_in_each(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "topk", layer=1)
    later = [
        tiny_subject("llama", "topk", layer=2, seed=2),
        tiny_subject("llama", "standard", layer=3, seed=3),
    ]
    config = side_effects.Config(prompts=PROMPTS, factor=3.0)
    ctx = RunContext(later=lambda layer: [each for each in later if each.layer > layer])
    columns = side_effects.score(subject, np.array(PROBES), config, ctx)
    expected = [
        naive_side_effects(subject, feature, PROMPTS, 3.0, 0.1, later)[2] for feature in PROBES
    ]
    assert columns["collateral_spread_later"].tolist() == pytest.approx(np.mean(expected, axis=1))
    assert len(ctx.later_subjects(subject, 1)) == 1


def test_a_feature_is_scored_alike_alone_and_among_all(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "topk")
    every = score_features(subject, "side_effects", prompts=PROMPTS)
    few = score_features(subject, "side_effects", [40, 3], prompts=PROMPTS)
    for name in ("effect_stability", "collateral_spread"):
        assert few[name].tolist() == every[name].iloc[[40, 3]].tolist()
    assert len(every) == D_SAE


def test_a_feature_without_effect_has_no_stability(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama")
    subject.sae.W_dec.data[5] = 0
    row = score_features(subject, "side_effects", [5], prompts=PROMPTS).iloc[0]
    assert pd.isna(row["effect_stability"])
    assert row["collateral_spread"] == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompts": ["the"]}, "two or more, none empty"),
        ({"factor": 0.0}, "factor=0.0 of score side_effects steers with nothing"),
        ({"tolerance": -1.0}, "tolerance=-1.0 of score side_effects must be at least 0"),
        ({"later_saes": -1}, "later_saes=-1 of score side_effects must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        side_effects.Config(**settings).check()
