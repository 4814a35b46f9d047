"""The fast output score against one forward per feature with SAELens' own encode and decode."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from steerlens import SteerlensError, score_features
from steerlens.engine.subject import Subject
from tests.support.naive import naive_output_score, unsteered
from tests.support.pairs import pairs, some_slow
from tests.support.templates import TEMPLATE
from tests.support.tiny import ARCHITECTURES, D_SAE, D_VOCAB, MODELS, OTHERS, TRANSCODERS

MakeSubject = Callable[..., Subject]
PROMPT = "From my experience,"
PROBES = range(0, D_SAE, 7)


def assert_equals_naive(subject: Subject, factor: float, **settings: Any) -> None:
    # A budget of a few rows, so that features fall into several batches.
    frame = score_features(
        subject,
        features=PROBES,
        factor=factor,
        memory_budget=60_000,
        null_directions=0,
        **settings,
    )
    cache = unsteered(subject, PROMPT)
    for row in frame.to_dict("records"):
        score, rank, probability = naive_output_score(
            subject, row["feature"], PROMPT, factor, **settings, cache=cache
        )
        assert row["output_rank"] == rank
        assert row["output_score"] == pytest.approx(score, rel=1e-4)
        assert row["output_probability"] == pytest.approx(probability, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "architecture", "site", "factor"),
    some_slow(pairs(MODELS, ARCHITECTURES, ["resid_pre", "resid_post"], [0.3, 10.0])),
)
def test_equals_one_forward_per_feature(
    tiny_subject: MakeSubject, kind: str, architecture: str, site: str, factor: float
) -> None:
    assert_equals_naive(tiny_subject(kind, architecture, site=site), factor)


@pytest.mark.parametrize(
    ("kind", "site"),
    some_slow(product(MODELS, ["attn.hook_z", "resid_mid", "attn_out", "mlp_out"])),
)
def test_equals_naive_inside_the_block(tiny_subject: MakeSubject, kind: str, site: str) -> None:
    if (kind, site) == ("neox", "resid_mid"):
        pytest.skip("its attention and MLP run side by side: there is no such place")
    subject = tiny_subject(kind, "jumprelu", site=site)
    assert_equals_naive(subject, 10.0)
    assert_equals_naive(subject, 0.3, keep_error=False)


@pytest.mark.parametrize(
    ("architecture", "site"),
    some_slow(product(TRANSCODERS, ["ln2.hook_normalized", "mlp.hook_in", "mlp_in", "resid_mid"])),
)
def test_equals_naive_with_transcoders(
    tiny_subject: MakeSubject, architecture: str, site: str
) -> None:
    subject = tiny_subject("gemma2", architecture, site=site)
    assert subject.site.write.endswith("mlp_out")
    assert_equals_naive(subject, 10.0)
    assert_equals_naive(subject, 0.3, keep_error=False)


def test_the_prompt_goes_into_the_template_where_that_is_asked(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "jumprelu")
    with pytest.raises(SteerlensError, match="llama has no chat template"):
        score_features(subject, features=[0], chat_template=True)
    subject.lm.tokenizer.chat_template = TEMPLATE
    frame = score_features(subject, features=PROBES, chat_template=True)
    rendered = subject.lm.chat(PROMPT)
    cache = unsteered(subject, rendered)
    for row in frame.to_dict("records"):
        score, rank, _ = naive_output_score(subject, row["feature"], rendered, 10.0, cache=cache)
        assert row["output_rank"] == rank
        assert row["output_score"] == pytest.approx(score, rel=1e-4)
    plain = score_features(subject, features=PROBES)
    assert not np.allclose(frame["output_score"].astype(float), plain["output_score"].astype(float))


@pytest.mark.parametrize("architecture", list(OTHERS))
def test_equals_naive_with_other_architectures(
    tiny_subject: MakeSubject, architecture: str
) -> None:
    subject = tiny_subject("llama", architecture)
    assert_equals_naive(subject, 10.0)
    assert_equals_naive(subject, 0.3, keep_error=False)


def test_every_architecture_that_saelens_loads_or_trains_is_compared() -> None:
    compared = {*ARCHITECTURES, *TRANSCODERS, *OTHERS}
    assert set(SAE_CLASS_REGISTRY) == compared
    for _, config_class in SAE_TRAINING_CLASS_REGISTRY.values():
        # BatchTopK and Matryoshka, among others, are saved as one of these.
        saved = config_class(d_in=8, d_sae=16).get_inference_sae_cfg_dict()
        assert saved["architecture"] in compared


@pytest.mark.parametrize(
    ("architecture", "norm"),
    some_slow(product(ARCHITECTURES, ["layer_norm", "constant_norm_rescale"])),
)
def test_equals_naive_with_run_time_normalisation(
    tiny_subject: MakeSubject, architecture: str, norm: str
) -> None:
    subject = tiny_subject("gemma2", architecture, normalize_activations=norm)
    assert_equals_naive(subject, 10.0)
    assert_equals_naive(subject, 0.3, keep_error=False)


def test_equals_naive_where_topk_is_rescaled_by_decoder_norms(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "topk", rescale_acts_by_decoder_norm=True)
    assert_equals_naive(subject, 10.0)


@pytest.mark.parametrize("kind", MODELS)
def test_equals_naive_on_a_processed_model(tiny_subject: MakeSubject, kind: str) -> None:
    kwargs = {"center_writing_weights": True, "fold_ln": True}
    subject = tiny_subject(kind, metadata={"model_from_pretrained_kwargs": kwargs})
    assert subject.lm.identity["processing"] != "none"
    assert_equals_naive(subject, 10.0)


@pytest.mark.parametrize(("layer", "site"), some_slow(product([0, 3], ["resid_pre", "resid_post"])))
def test_equals_naive_at_the_first_and_last_block(
    tiny_subject: MakeSubject, layer: int, site: str
) -> None:
    assert_equals_naive(tiny_subject("gemma2", layer=layer, site=site), 10.0)


def test_dropping_the_error_changes_the_score(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    assert_equals_naive(subject, 10.0, keep_error=False)
    kept = score_features(subject)["output_score"].to_numpy(float)
    dropped = score_features(subject, keep_error=False)["output_score"].to_numpy(float)
    assert np.abs(kept - dropped).max() > 1e-3


def test_factor_zero_steers_nothing(tiny_subject: MakeSubject) -> None:
    frame = score_features(tiny_subject(), factor=0.0)
    assert np.abs(frame["output_score_delta"].to_numpy(float)).max() < 1e-7
    assert frame["output_score"].to_numpy(float).max() > 0


def test_delta_is_the_score_minus_the_unsteered_one(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    frame = score_features(subject, features=PROBES)
    cache = unsteered(subject, PROMPT)
    for row in frame.to_dict("records"):
        plain, _, _ = naive_output_score(subject, row["feature"], PROMPT, 0.0, cache=cache)
        difference = row["output_score"] - row["output_score_delta"]
        assert difference == pytest.approx(plain, rel=1e-4)


def test_a_batch_equals_one_by_one(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("gemma2", "topk")
    together = score_features(subject)
    for feature in (0, 20, D_SAE - 1):
        alone = score_features(subject, features=[feature]).iloc[0]
        row = together.iloc[feature]
        assert alone["output_score"] == pytest.approx(row["output_score"], rel=1e-5)
        assert alone["output_rank"] == row["output_rank"]
        assert alone["output_token"] == row["output_token"]


def test_the_order_of_features_is_kept(tiny_subject: MakeSubject) -> None:
    frame = score_features(tiny_subject(), features=[9, 3, 30])
    assert frame["feature"].tolist() == [9, 3, 30]


def test_the_best_token_is_one_of_the_logit_lens(tiny_subject: MakeSubject) -> None:
    frame = score_features(tiny_subject())
    assert all(row["output_token"] in row["logit_lens_tokens"] for row in frame.to_dict("records"))


def test_every_token_in_the_lens_gives_rank_zero(tiny_subject: MakeSubject) -> None:
    frame = score_features(tiny_subject(), top_k=D_VOCAB)
    assert set(frame["output_rank"].tolist()) == {0}


def test_a_prompt_of_one_token_works(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject(metadata={"prepend_bos": False})
    score, rank, _ = naive_output_score(subject, 5, "From", 10.0)
    row = score_features(subject, features=[5], prompt="From").iloc[0]
    assert row["output_score"] == pytest.approx(score, rel=1e-4)
    assert row["output_rank"] == rank


def test_the_model_has_no_hooks_left(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    before = subject.lm.bridge(subject.to_tokens(PROMPT))
    score_features(subject)
    assert not any(hook.fwd_hooks for hook in subject.lm.bridge.hook_dict.values())
    assert (subject.lm.bridge(subject.to_tokens(PROMPT)) == before).all()


def test_bfloat16_ranks_features_like_float32(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama")
    exact = score_features(subject)["output_score"].to_numpy(float)
    import torch

    subject.lm.bridge.original_model.to(torch.bfloat16)
    subject.sae.to(torch.bfloat16)
    subject.logit_lens_memo = None
    coarse = score_features(subject)["output_score"].to_numpy(float)
    assert np.corrcoef(exact, coarse)[0, 1] > 0.98


@pytest.mark.parametrize("top_k", [0, D_VOCAB + 1])
def test_top_k_beyond_the_vocabulary_is_refused(tiny_subject: MakeSubject, top_k: int) -> None:
    with pytest.raises(SteerlensError, match="top_k"):
        score_features(tiny_subject(), top_k=top_k)


def test_an_empty_prompt_is_refused(tiny_subject: MakeSubject) -> None:
    with pytest.raises(SteerlensError, match="output is empty; give it at least one word"):
        score_features(tiny_subject(), prompt="")


def test_a_prompt_longer_than_the_context_is_refused(tiny_subject: MakeSubject) -> None:
    with pytest.raises(SteerlensError, match="65 tokens; llama takes 1 to 64"):
        score_features(tiny_subject(), prompt="the " * 64)
