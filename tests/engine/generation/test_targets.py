"""What each row is steered with: several features, random directions, the features' own maxima."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import steerlens
from steerlens.config.schema import CONTROLS, RANDOM_DIRECTION, RANDOM_FEATURE
from steerlens.engine.corpus_pass import activations_of, read_corpus
from steerlens.engine.generation.targets import (
    _another,
    _random_like,
    row_targets,
)
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext, activation
from tests.support.generating import (
    GREEDY,
    PROMPTS,
    assert_equal_ids,
    ids_of,
    rows_of,
    texts_of,
)
from tests.support.naive_steering import naive_text

MakeSubject = Callable[..., Subject]
SITES = ("resid_pre", "resid_mid", "attn_out", "attn.hook_z", "mlp_out")


PROMPT = PROMPTS[0]


def test_each_of_several_features_has_an_equal_share(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    batch = rows_of([5], [2.0], ["the"], together=["", "9+30"])
    targets = row_targets(subject, batch, None, 0)
    third = 1 / 3
    assert targets.weights_BN.flatten().tolist() == pytest.approx([1, 0, 0, third, third, third])
    assert targets.features_BN is not None
    assert targets.features_BN[1].tolist() == [5, 9, 30]


@pytest.mark.parametrize("operator", ["add", "clamp", "min_clamp", "ablate"])
def test_several_features_write_what_steer_writes(tiny_subject: MakeSubject, operator: str) -> None:
    """The texts of a batch of groups of different sizes equal those of the model's own generate."""
    subject = tiny_subject("llama", "jumprelu")
    factor = 1.0 if operator == "ablate" else 6.0
    groups: dict[str, list[int]] = {"": [5], "9": [5, 9], "9+30": [5, 9, 30]}
    rows = rows_of([5], [factor], [PROMPT], together=list(groups))
    found = ids_of(texts_of(subject, rows, operator=operator, **GREEDY))
    tokens = subject.to_tokens(PROMPT)
    for ids, group in zip(found, groups.values(), strict=True):
        weights = [1 / len(group)] * len(group)
        with steerlens.steer(subject, group, factor, weights=weights, operator=operator):
            hf_model: Any = subject.lm.bridge.original_model
            whole = hf_model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False
            )
        assert ids == whole[0, tokens.shape[1] :].tolist()[: len(ids)]
    for place, ids in enumerate(found):
        assert ids_of(texts_of(subject, rows.iloc[[place]], operator=operator, **GREEDY)) == [ids]


def control_vectors(subject: Subject, rows: pd.DataFrame, seed: int = 0) -> torch.Tensor:
    return row_targets(subject, rows, None, seed).vectors_BND[:, 0]


def test_a_random_direction_is_as_long_as_the_decoder_row(subject: Subject) -> None:
    rows = rows_of(prompts=["the"], factors=[0.5, 2.0], controls=["", RANDOM_DIRECTION])
    vectors = control_vectors(subject, rows)
    is_random = (rows["control"] == RANDOM_DIRECTION).to_numpy()
    features = torch.tensor(rows["feature"].tolist())
    decoder = subject.sae.W_dec[features]
    torch.testing.assert_close(vectors.norm(dim=-1), decoder.norm(dim=-1))
    assert torch.equal(vectors[~is_random], decoder[~is_random])
    cosine = torch.cosine_similarity(vectors, decoder)[is_random]
    assert cosine.abs().max() < 0.8


def test_a_random_direction_is_one_for_each_seed_layer_and_feature(subject: Subject) -> None:
    rows = rows_of(factors=[0.5, 2.0], samples=2, controls=[RANDOM_DIRECTION])
    vectors = control_vectors(subject, rows)
    of_5, of_9 = (vectors[(rows["feature"] == feature).to_numpy()] for feature in (5, 9))
    assert (of_5 == of_5[0]).all()
    assert (of_9 == of_9[0]).all()
    ones = torch.ones(32)
    first = _random_like(ones, 0, 2, 5)
    assert torch.equal(first, _random_like(ones, 0, 2, 5))
    for other in ((1, 2, 5), (0, 3, 5), (0, 2, 6)):
        assert abs(float(torch.cosine_similarity(first, _random_like(ones, *other), dim=0))) < 0.8
    assert not torch.equal(control_vectors(subject, rows, seed=1), vectors)


def test_a_random_feature_is_as_long_as_the_decoder_row_and_points_like_another(
    tiny_subject: MakeSubject,
) -> None:
    for rescaled in (False, True):
        subject = tiny_subject("llama", "topk", rescale_acts_by_decoder_norm=rescaled)
        rows = rows_of(prompts=["the"], factors=[0.5, 2.0], controls=["", RANDOM_FEATURE])
        vectors = control_vectors(subject, rows)
        own, random = (
            vectors[(rows["control"] == name).to_numpy()] for name in ("", RANDOM_FEATURE)
        )
        torch.testing.assert_close(random.norm(dim=-1), own.norm(dim=-1))
        unit_FD = torch.nn.functional.normalize(subject.sae.W_dec, dim=-1)
        unit_BD = torch.nn.functional.normalize(random, dim=-1)
        nearest = (unit_BD @ unit_FD.T).max(dim=-1)
        torch.testing.assert_close(nearest.values, torch.ones(len(random)))
        others = nearest.indices.tolist()
        assert others == [_another(subject.d_sae, 0, subject.layer, f) for f in (5, 5, 9, 9)]


def test_a_random_feature_is_any_other_one_of_seed_layer_and_feature() -> None:
    every = {
        (seed, layer, feature): _another(4, seed, layer, feature)
        for seed in range(40)
        for layer in range(3)
        for feature in range(4)
    }
    assert all(other != feature for (_, _, feature), other in every.items())
    assert {(feature, other) for (_, _, feature), other in every.items()} == {
        (one, other) for one in range(4) for other in range(4) if one != other
    }
    assert every == {key: _another(4, *key) for key in every}
    one = [_another(10_000, 0, 2, feature) for feature in range(50)]
    for seed, layer in ((1, 2), (0, 3)):
        assert one != [_another(10_000, seed, layer, feature) for feature in range(50)]
    with pytest.raises(SteerlensError, match="at least two features"):
        _another(1, 0, 0, 0)


def test_a_random_feature_writes_what_that_feature_writes(tiny_subject: MakeSubject) -> None:
    """Texts of whole forwards with SAELens' own decode, the factor scaled to an equal change."""
    subject = tiny_subject("llama", "jumprelu")
    rows = rows_of([5, 9], [3.0], PROMPTS[:2], controls=[RANDOM_FEATURE])
    norms = subject.sae.W_dec.norm(dim=-1)
    expected = []
    for feature, prompt in zip(rows["feature"], rows["prompt"], strict=True):
        other = _another(subject.d_sae, 0, subject.layer, feature)
        factor = 3.0 * float(norms[feature] / norms[other])
        expected.append(
            naive_text(subject, subject.to_tokens(prompt)[0].tolist(), [other], factor, 6)
        )
    assert_equal_ids(expected, texts_of(subject, rows, **GREEDY))


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_gives_another_text_and_its_factor_0_the_same(
    subject: Subject, control: str
) -> None:
    rows = rows_of(features=[5], factors=[0.0, 5.0], controls=["", control])
    texts = texts_of(subject, rows, **GREEDY)
    groups = dict(iter(texts.groupby(["control", "factor"])))
    mine, random = (
        [ids_of(groups[name, factor]) for factor in (0.0, 5.0)] for name in ("", control)
    )
    assert mine[0] == random[0]
    assert mine[1] != random[1]


def maxima(subject: Subject, run: RunContext) -> np.ndarray:
    read_corpus([subject], [activation.Config()], run)
    return activations_of(subject, None, run).max_F.astype(float)


def test_max_activation_is_each_features_own(
    tiny_subject: MakeSubject, corpus_run: RunContext
) -> None:
    subject = tiny_subject("llama", "topk")
    max_F = maxima(subject, corpus_run)
    firing = np.flatnonzero(max_F > 0)[:2].tolist()
    assert len(firing) == 2
    settings = {"unit": "max_activation", "positions": "all"}
    for operator in ("add", "clamp"):
        rows = rows_of(firing, [2.0], PROMPTS[:2])
        texts = texts_of(subject, rows, corpus_run, operator=operator, **settings, **GREEDY)
        expected = [
            naive_text(
                subject, subject.to_tokens(prompt)[0].tolist(), [feature], 2.0, 6,
                max_activation=float(max_F[feature]), operator=operator, **settings,
            )
            for feature, prompt in zip(rows["feature"], rows["prompt"], strict=True)
        ]  # fmt: skip
        assert_equal_ids(expected, texts)


@pytest.mark.parametrize("default", [None, 50.0])
def test_a_feature_that_never_fires_has_the_default_maximum(
    tiny_subject: MakeSubject, corpus_run: RunContext, default: float | None
) -> None:
    subject = tiny_subject("llama", "topk")
    subject.sae.b_enc.data[7] = -1000.0  # type: ignore[operator]
    max_F = maxima(subject, corpus_run)
    assert max_F[7] == 0
    expected = float(np.median(max_F[max_F > 0])) if default is None else default
    rows = rows_of([7], [2.0], ["Note that"])
    settings = {"unit": "max_activation", "positions": "all"}
    texts = texts_of(
        subject, rows, corpus_run, default_max_activation=default, **settings, **GREEDY
    )
    ids = subject.to_tokens("Note that")[0].tolist()
    naive = naive_text(subject, ids, [7], 2.0, 6, max_activation=expected, **settings)
    assert_equal_ids([naive], texts)
