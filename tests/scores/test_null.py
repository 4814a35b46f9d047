"""Output scores of random directions: one by one in the place of a decoder row, and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerlens import SteerlensError, score_features
from steerlens.engine.intervention import decoder_rows
from steerlens.engine.run_context import RunContext
from steerlens.engine.steered import SteeredPrompt
from steerlens.engine.subject import Subject
from steerlens.scores import output
from steerlens.scores.output import Config, draw_directions, null_scores, p_values
from steerlens.scores.scoring import null_columns, score_layer
from steerlens.storage.store import Store
from tests.support.naive import naive_output_score, unsteered
from tests.support.tiny import ARCHITECTURES, D_SAE, MODELS

MakeSubject = Callable[..., Subject]
OFTEN = ("gemma2", "gpt2", "neox")
"""Types of models that differ in their norms; `test_output` compares features on all of them."""


def naive_null_scores(subject: Subject, n: int, config: Config) -> list[float]:
    """The scores of a feature whose decoder row is replaced by each of `n` random directions.

    Of one that isn't active, so that the SAE's reconstruction stays what it is.
    """
    _, directions_nD = draw_directions(subject, n)
    encoded = SteeredPrompt(subject, config.prompt)._encoded
    feature = int((encoded.acts_BLF[0, -1] == 0).nonzero()[0])
    cache = unsteered(subject, config.prompt)
    return [naive_null_score(subject, feature, row_D, config, cache) for row_D in directions_nD]


def naive_null_score(
    subject: Subject, feature: int, direction_D: torch.Tensor, config: Config, cache: Any
) -> float:
    row_D = subject.sae.W_dec.data[feature].clone()
    if getattr(subject.sae.cfg, "rescale_acts_by_decoder_norm", False):
        direction_D = direction_D * row_D.norm()  # it scales activations so, and undoes it
    subject.sae.W_dec.data[feature] = direction_D
    try:
        score, _, _ = naive_output_score(
            subject, feature, config.prompt, config.factor, config.top_k, config.keep_error, cache
        )
    finally:
        subject.sae.W_dec.data[feature] = row_D
    return score


def assert_equals_naive(subject: Subject, **settings: Any) -> None:
    config = Config(null_directions=9, **settings)
    found = null_scores(subject, config, RunContext())
    expected = naive_null_scores(subject, 9, config)
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == 9


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        *((kind, "jumprelu") for kind in OFTEN),
        *(
            pytest.param(kind, "jumprelu", marks=pytest.mark.slow)
            for kind in MODELS
            if kind not in OFTEN
        ),
        *(("llama", name) for name in ARCHITECTURES),
    ],
)
def test_a_random_direction_is_scored_in_the_place_of_a_decoder_row(
    tiny_subject: MakeSubject, kind: str, architecture: str
) -> None:
    assert_equals_naive(tiny_subject(kind, architecture))


@pytest.mark.parametrize("site", ["resid_pre", "attn.hook_z", "mlp_out"])
def test_equals_naive_inside_the_block(tiny_subject: MakeSubject, site: str) -> None:
    subject = tiny_subject("gemma2", "jumprelu", site=site)
    assert_equals_naive(subject)
    assert_equals_naive(subject, factor=0.3, keep_error=False, top_k=5)


def test_equals_naive_with_normalisation_transcoders_and_rescaling(
    tiny_subject: MakeSubject,
) -> None:
    assert_equals_naive(tiny_subject("llama", normalize_activations="layer_norm"))
    assert_equals_naive(tiny_subject("gemma2", "skip_transcoder", site="mlp.hook_in"))
    assert_equals_naive(tiny_subject("llama", "topk", rescale_acts_by_decoder_norm=True))


def test_directions_have_norms_of_decoder_rows_and_nothing_else_of_them(
    tiny_subject: MakeSubject,
) -> None:
    subject = tiny_subject("llama", "topk")
    features_n, directions_nD = draw_directions(subject, 400)
    rows_nD = decoder_rows(subject.sae, features_n)
    assert torch.allclose(directions_nD.norm(dim=-1), rows_nD.norm(dim=-1))
    assert set(features_n.tolist()) == set(range(D_SAE))
    cosines_nn = torch.nn.functional.cosine_similarity(
        directions_nD[:, None], directions_nD[None], dim=-1
    )
    assert cosines_nn.mean().abs() < 0.01
    assert torch.nn.functional.cosine_similarity(directions_nD, rows_nD).mean().abs() < 0.05
    fewer = draw_directions(subject, 7)
    assert all(
        torch.equal(few, more[:7])
        for few, more in zip(fewer, (features_n, directions_nD), strict=True)
    )
    other = tiny_subject("llama", "topk", layer=1)
    assert not torch.equal(draw_directions(other, 7)[1], fewer[1])


def test_p_values_are_counted() -> None:
    rng = np.random.default_rng(0)
    null_N = np.round(rng.random(499), 2)
    scores_F = np.round(rng.random(60), 2)  # many ties
    counted = [(1 + sum(null >= score for null in null_N)) / 500 for score in scores_F]
    assert p_values(scores_F, null_N).tolist() == counted
    assert p_values(np.array([2.0, -1.0]), null_N).tolist() == [1 / 500, 1.0]


def test_every_feature_has_its_p_value(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    frame = score_features(subject)
    null_N = null_scores(subject, Config(), RunContext())
    assert len(null_N) == 499
    for row in frame.to_dict("records"):
        count = int((null_N >= row["output_score"]).sum())
        assert row["output_score_p"] == (1 + count) / 500
    assert len({*frame["output_score_p"].tolist()}) > 5


def test_neither_memory_nor_order_nor_shard_changes_a_bit(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("gemma2", "topk")
    whole = score_features(subject).set_index("feature")["output_score_p"]
    some = score_features(subject, features=[40, 3, 11], memory_budget=60_000)
    assert some["output_score_p"].tolist() == whole.loc[[40, 3, 11]].tolist()
    many, few = (
        null_scores(subject, Config(null_directions=100), RunContext(memory_budget=budget))
        for budget in (2**31, 60_000)
    )
    assert many.tobytes() == few.tobytes()


def test_the_seed_of_the_run_does_not_matter(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    one, other = (score_features(subject, features=[1, 2], seed=seed) for seed in (0, 1))
    assert one.equals(other)


def test_zero_directions_switch_the_null_off(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    frame = score_features(subject, features=[1, 2], null_directions=0)
    assert all(frame["output_score_p"].isna())
    assert null_columns(subject, {"output": Config(null_directions=0)}, RunContext()) is None
    with pytest.raises(SteerlensError, match="null_directions=-1 of score output"):
        Config(null_directions=-1).check()


def test_other_scores_have_no_null(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("random directions were drawn")

    monkeypatch.setattr(output, "draw_directions", refuse)
    subject = tiny_subject()
    assert len(score_features(subject, "concept", features=[1], concept="the")) == 1
    assert len(score_features(subject, "prompt_robustness", features=[1])) == 1


@pytest.mark.parametrize("d_sae", [1, 3])
def test_an_sae_with_hardly_a_feature_has_a_null(tiny_subject: MakeSubject, d_sae: int) -> None:
    frame = score_features(tiny_subject("llama", "standard", d_sae=d_sae))
    assert len(frame) == d_sae
    assert frame["output_score_p"].between(1 / 500, 1).all()


def test_what_is_kept_is_not_computed_again(
    tiny_subject: MakeSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject()
    configs = {"output": Config()}

    def run() -> tuple[Any, Any]:
        context = RunContext(store=Store(tmp_path))
        columns = score_layer(subject, [1, 5], configs, 20, context)
        return columns["output_score_p"].to_pylist(), null_columns(subject, configs, context)

    p_first, null_first = run()
    monkeypatch.setattr(output, "score_toward", lambda *_: pytest.fail("scored again"))
    p_again, null_again = run()
    assert p_first == p_again
    assert null_first is not None
    assert null_again is not None
    assert null_first["output_score"].tobytes() == null_again["output_score"].tobytes()
