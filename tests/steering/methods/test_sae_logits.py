"""SAELogits' features and weights, against plain loops; one feature alone is the method SAE."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.steering.methods import fitted_io, sae_logits
from steerlens.steering.methods.directions import Detection, Directions, joined, text_scores
from steerlens.steering.methods.fitting import Fitted
from steerlens.steering.methods.task import Task
from steerlens.storage.store import Store
from tests.support.concepts import tiny_concepts, tiny_task


def encoded(task: Task, texts: list[int]) -> np.ndarray:
    sae = task.subject.sae
    return np.concatenate(
        [sae.encode(task.vectors.whole(text)[1:]).detach().numpy() for text in texts]
    ).astype(float)


def naive(task: Task, concept: int, config: sae_logits.Config) -> dict[int, float]:
    """Weight by feature, as the definition says, one feature at a time."""
    labelled, subject = task.labelled, task.subject
    pos, neg = (encoded(task, side[concept]) for side in (labelled.positives, labelled.negatives))
    scores: dict[float, dict[int, float]] = {0.05: {}, 20.0: {}}
    mean_if: dict[int, float] = {}
    for f in range(subject.d_sae):
        on, off = pos[:, f][pos[:, f] > 0], neg[:, f][neg[:, f] > 0]
        if len(on) < config.min_active or on.mean() <= (off.mean() if len(off) else 0):
            continue
        mean_if[f] = float(on.mean())
        for power, of in scores.items():
            gap = (pos[:, f].mean() - neg[:, f].mean()) / pos[:, f].mean()
            of[f] = gap * (len(on) / len(pos)) ** power
    candidates = {
        f
        for of in scores.values()
        for f in sorted(of, key=lambda f: (-of[f], f))[: config.candidates]
    }
    counts: list[Any] = []
    for side in (labelled.positives[concept], labelled.negatives[concept]):
        answers = [labelled.texts[text].ids[labelled.texts[text].n_prompt :] for text in side]
        counts.append((Counter(t for ids in answers for t in set(ids)), len(side)))
    (with_, n1), (without, n0) = counts
    z = {}
    for token in {*with_, *without}:
        p1, p0 = with_[token] / n1, without[token] / n0
        both = (with_[token] + without[token]) / (n1 + n0)
        if p1 > p0:
            z[token] = (p1 - p0) / (both * (1 - both) * (1 / n1 + 1 / n0)) ** 0.5
    tokens = sorted(z, key=lambda token: (-z[token], token))[: config.tokens]
    head = subject.lm.head
    relevance = {}
    for f in candidates:
        logits = head.logits(head.norm(subject.sae.W_dec[f][None]))[0].double().detach()
        relevance[f] = float(logits[tokens].mean() - logits.mean())
    best = sorted(candidates, key=lambda f: -relevance[f])[: config.latents]
    weights = {f: relevance[f] * mean_if[f] for f in best if relevance[f] > 0}
    return {f: weight / sum(weights.values()) for f, weight in weights.items()}


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_weights_are_activation_times_lens_logits(
    tiny_subject: Callable[..., Subject], architecture: str
) -> None:
    task = tiny_task(tiny_subject("llama", architecture), tiny_concepts(n_texts=(10, 10)))
    config = sae_logits.Config(latents=4, candidates=6, tokens=5)
    found = sae_logits.fit(task, config, 0)
    assert found.latents is not None
    scores_NC = text_scores(task.subject, found, task.vectors)
    for concept in range(3):
        expected = naive(task, concept, config)
        ids, weights = found.latents.ids_CK[concept], found.latents.weights_CK[concept]
        mine = {f: w for f, w in zip(ids.tolist(), weights.tolist(), strict=True) if w}
        assert mine == pytest.approx(expected, rel=1e-4)
        rows = task.subject.sae.W_dec.detach()
        v_D = sum(weight * rows[f] for f, weight in expected.items())
        assert isinstance(v_D, torch.Tensor)
        length = sum(weight * float(rows[f].norm()) for f, weight in expected.items())
        torch.testing.assert_close(
            found.vectors_CD[concept], v_D / v_D.norm() * length, rtol=0, atol=1e-4
        )
        text = task.labelled.positives[concept][0]
        acts_LF = encoded(task, [text])
        token_scores = sum(weight * acts_LF[:, f] for f, weight in expected.items())
        assert float(scores_NC[text, concept]) == pytest.approx(np.max(token_scores), rel=1e-4)


def test_one_feature_alone_is_the_method_sae(tiny_subject: Callable[..., Subject]) -> None:
    task = tiny_task(tiny_subject("llama", "topk"))
    found = sae_logits.fit(task, sae_logits.Config(latents=1), 0)
    assert found.latents is not None
    features_C = found.latents.ids_CK[:, 0]
    sae = Directions(task.subject.sae.W_dec[features_C].detach(), features_C=features_C)
    torch.testing.assert_close(found.vectors_CD, sae.vectors_CD, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        text_scores(task.subject, found, task.vectors),
        text_scores(task.subject, sae, task.vectors),
    )


def test_concepts_where_nothing_fires_are_refused(tiny_subject: Callable[..., Subject]) -> None:
    task = tiny_task(tiny_subject())
    with pytest.raises(SteerlensError, match=r"fires on 1000 tokens .*settings\.SAELogits\.min_"):
        sae_logits.fit(task, sae_logits.Config(min_active=1000), 0)


def test_weighted_features_and_scales_are_stored_and_joined(
    tiny_subject: Callable[..., Subject], tmp_path: Path
) -> None:
    task = tiny_task(tiny_subject())
    found = replace(sae_logits.fit(task, sae_logits.Config(), 0), scale_C=torch.ones(3))
    store = Store(tmp_path)
    fitted_io.keep(store, {"a": 1}, Fitted("SAELogits", found, Detection([None] * 3, [1.0] * 3)))
    again = fitted_io.find(store, {"a": 1})
    assert isinstance(again, Fitted)
    twice = joined([found, again.directions])
    assert twice.latents is not None
    assert found.latents is not None
    assert twice.scale_C is not None
    for name in ("ids_CK", "weights_CK"):
        assert torch.equal(getattr(twice.latents, name), getattr(found.latents, name).repeat(2, 1))
    assert len(twice.scale_C) == 6
