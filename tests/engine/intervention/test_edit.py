"""The edit for rows of features against SAELens' own encode and decode, one text at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from steerlens import SteerlensError, steer
from steerlens.config.registry import parts_of
from steerlens.config.schema import POSITIONS, unit_of_today
from steerlens.engine.subject import Subject
from tests.support.naive_steering import naive_logits
from tests.support.pairs import pairs, some_slow
from tests.support.tiny import ARCHITECTURES, D_MODEL, MODELS, OTHERS, TRANSCODERS

MakeSubject = Callable[..., Subject]
OPERATORS, UNITS = list(parts_of("operators")), list(parts_of("units"))
IDS = [0, 3, 5, 6, 9, 4]
SITES = ("resid_pre", "resid_mid", "attn_out", "attn.hook_z", "mlp_out", "resid_post")


def assert_equals_naive(subject: Subject, factor: float = 3.0, **settings: Any) -> None:
    features = settings.pop("feature", [5])
    naive_settings = {name: value for name, value in settings.items() if name not in ("positions",)}
    positions = settings.get("positions", "last")
    expected = naive_logits(subject, IDS, len(IDS), features, factor, positions, **naive_settings)
    with torch.no_grad(), steer(subject, features, factor, **settings) as hooks:
        logits = subject.lm.bridge(torch.tensor([IDS, IDS]))[:, -1]
    assert hooks.fired == (positions != "generated")
    torch.testing.assert_close(logits, expected.expand(2, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("operator", "unit", "keep_error"), some_slow(pairs(OPERATORS, UNITS, [True, False]))
)
def test_every_operator_and_unit_equals_naive(
    tiny_subject: MakeSubject, operator: str, unit: str, keep_error: bool
) -> None:
    subject = tiny_subject("llama", "jumprelu")
    settings = {"operator": operator, "unit": unit, "keep_error": keep_error}
    for factor in (0.7, -2.0):
        assert_equals_naive(subject, factor, max_activation=2.5, **settings)


@pytest.mark.parametrize(
    ("architecture", "operator"), some_slow(product([*ARCHITECTURES, *OTHERS], OPERATORS))
)
def test_every_architecture_equals_naive(
    tiny_subject: MakeSubject, architecture: str, operator: str
) -> None:
    subject = tiny_subject("gemma2", architecture)
    # The tiny temporal SAE has far smaller activations than the others.
    factor = 300.0 if architecture == "temporal" and operator != "ablate" else 3.0
    assert_equals_naive(subject, factor, operator=operator)
    assert_equals_naive(subject, factor, operator=operator, keep_error=False, positions="all")


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_transcoders_equal_naive(tiny_subject: MakeSubject, architecture: str) -> None:
    subject = tiny_subject("gemma2", architecture, site="mlp_in")
    for operator in OPERATORS:
        assert_equals_naive(subject, operator=operator)
        assert_equals_naive(subject, operator=operator, keep_error=False, positions="all")


@pytest.mark.parametrize(
    ("norm", "unit"), some_slow(product(["layer_norm", "constant_norm_rescale"], UNITS))
)
def test_run_time_normalisation_equals_naive(
    tiny_subject: MakeSubject, norm: str, unit: str
) -> None:
    subject = tiny_subject("llama", "jumprelu", normalize_activations=norm)
    assert_equals_naive(subject, unit=unit, positions="all", max_activation=0.5)


@pytest.mark.parametrize(("kind", "site"), some_slow(product(MODELS, SITES)))
def test_every_model_and_site_equals_naive(tiny_subject: MakeSubject, kind: str, site: str) -> None:
    if (kind, site) == ("neox", "resid_mid"):
        pytest.skip("its attention and MLP run side by side: there is no such place")
    subject = tiny_subject(kind, "jumprelu", site=site)
    for positions in ("last", "all"):
        assert_equals_naive(subject, positions=positions)


def test_rescaled_decoders_equal_naive(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "topk", rescale_acts_by_decoder_norm=True)
    for operator in OPERATORS:
        assert_equals_naive(subject, operator=operator)


def test_several_features_at_once(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    assert_equals_naive(subject, feature=[5, 9, 30])
    with torch.no_grad():
        with steer(subject, [5, 9], 2.0, weights=[1.0, 0.0]):
            weighted = subject.lm.bridge(torch.tensor([IDS]))
        with steer(subject, 5, 2.0):
            alone = subject.lm.bridge(torch.tensor([IDS]))
    torch.testing.assert_close(weighted, alone)


@pytest.mark.parametrize(("operator", "positions"), some_slow(product(OPERATORS, POSITIONS)))
def test_factor_0_changes_nothing(tiny_subject: MakeSubject, operator: str, positions: str) -> None:
    subject = tiny_subject()
    bridge, tokens = subject.lm.bridge, torch.tensor([IDS])
    plain = bridge(tokens)
    settings = {"operator": operator, "positions": positions, "keep_error": False}
    with steer(subject, 5, 0.0, **settings):
        assert torch.equal(bridge(tokens), plain)


def test_only_the_edited_positions_change(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject(site="resid_post")
    tokens = torch.tensor([IDS])
    plain = subject.lm.bridge(tokens)
    with steer(subject, 5, 4.0):
        steered = subject.lm.bridge(tokens)
    assert torch.equal(steered[:, :-1], plain[:, :-1])
    assert not torch.allclose(steered[:, -1], plain[:, -1])


def test_the_model_is_restored_after_an_exception(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    tokens = torch.tensor([IDS])
    plain = subject.lm.bridge(tokens)
    with pytest.raises(IndexError), steer(subject, 5, 4.0):
        subject.lm.bridge(torch.tensor([[10_000]]))  # no such token
    assert torch.equal(subject.lm.bridge(tokens), plain)
    model: Any = subject.lm.bridge.original_model
    assert not model._forward_pre_hooks


def test_steering_adds_up_when_nested(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "topk", normalize_activations="none")
    direction = torch.randn(D_MODEL)
    tokens = torch.tensor([IDS])
    with (
        steer(subject, direction=direction, unit="raw"),
        steer(subject, direction=direction, factor=2.0, unit="raw"),
    ):
        nested = subject.lm.bridge(tokens)
    with steer(subject, direction=direction, factor=3.0, unit="raw"):
        torch.testing.assert_close(subject.lm.bridge(tokens), nested, rtol=1e-4, atol=1e-4)


def test_a_plain_direction_is_added_as_it_is(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("gemma2", normalize_activations="layer_norm")
    direction, tokens = torch.randn(D_MODEL), torch.tensor([IDS])

    def add(out: torch.Tensor, hook: Any) -> torch.Tensor:
        return out + 2.0 * direction

    expected = subject.lm.bridge.run_with_hooks(tokens, fwd_hooks=[(subject.site.write, add)])
    with steer(subject, direction=direction, factor=2.0, unit="raw", positions="all"):
        torch.testing.assert_close(subject.lm.bridge(tokens), expected, rtol=1e-4, atol=1e-4)


def test_the_earlier_name_of_a_unit_is_told_and_understood(
    tiny_subject: MakeSubject, caplog: pytest.LogCaptureFixture
) -> None:
    subject = tiny_subject("llama", "topk", normalize_activations="none")
    tokens, outputs = torch.tensor([IDS]), []
    unit_of_today.cache_clear()
    for unit in ("one", "raw"):
        with steer(subject, direction=torch.ones(D_MODEL), unit=unit):
            outputs.append(subject.lm.bridge(tokens))
    assert torch.equal(*outputs)
    assert caplog.messages == ["steer.unit=one is called raw now: write steer.unit=raw."]


@pytest.mark.parametrize("generate", ["bridge", "transformers"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_the_hook_fires_once_for_every_token_of_generate(
    tiny_subject: MakeSubject, positions: str, generate: str
) -> None:
    subject = tiny_subject()
    tokens = torch.tensor([IDS])
    with steer(subject, 5, 4.0, positions=positions) as hooks:
        if generate == "bridge":
            subject.lm.bridge.generate(
                tokens, max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False
            )
        else:
            model: Any = subject.lm.bridge.original_model
            model.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert hooks.fired == {"last": 6, "all": 6, "generated": 5, "prompt": 1}[positions]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "feature or with a direction"),
        ({"feature": 1, "direction": torch.ones(D_MODEL)}, "one of them"),
        ({"feature": 1000}, "no feature 1000"),
        ({"feature": 1, "operator": "ad"}, "'add'"),
        ({"feature": 1, "unit": "amax"}, "'a_max'"),
        ({"feature": 1, "positions": "lst"}, "'last'"),
        ({"feature": [1, 2], "weights": [1.0]}, "1 numbers for 2"),
        ({"direction": torch.ones(3)}, "must be"),
    ],
)
def test_wrong_arguments_are_refused(
    tiny_subject: MakeSubject, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SteerlensError, match=message), steer(tiny_subject(), **settings):
        pass


def test_what_needs_a_feature_is_refused_for_a_direction(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    with (
        pytest.raises(SteerlensError, match="only added"),
        steer(subject, direction=torch.ones(D_MODEL), operator="clamp"),
    ):
        subject.lm.bridge(torch.tensor([IDS]))
    with (
        pytest.raises(SteerlensError, match="maximum activations"),
        steer(subject, 1, unit="max_activation"),
    ):
        subject.lm.bridge(torch.tensor([IDS]))
