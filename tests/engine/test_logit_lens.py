"""The streamed logit lens against the whole matrix at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steerlens.engine.logit_lens import logit_lens
from steerlens.engine.subject import Subject
from tests.support.tiny import D_SAE, MODELS


@pytest.mark.parametrize("budget", [1, 20_000, 2**31])
@pytest.mark.parametrize("kind", list(MODELS))
def test_equals_the_whole_matrix_at_any_budget(
    tiny_subject: Callable[..., Subject], kind: str, budget: int
) -> None:
    subject = tiny_subject(kind)
    bridge = subject.lm.bridge
    whole = bridge.unembed(bridge.ln_final(subject.sae.W_dec[:, None]))[:, 0].topk(20).indices
    assert torch.equal(logit_lens(subject, torch.arange(D_SAE), 20, budget), whole)


def test_fewer_tokens_are_the_first_of_more(tiny_subject: Callable[..., Subject]) -> None:
    subject = tiny_subject()
    features = torch.tensor([3, 1, 40])
    five = logit_lens(subject, features, 5)
    assert torch.equal(logit_lens(subject, features, 20)[:, :5], five)
    assert torch.equal(logit_lens(subject, features, 5), five)


def test_other_features_are_not_answered_from_memory(tiny_subject: Callable[..., Subject]) -> None:
    subject = tiny_subject()
    first = logit_lens(subject, torch.tensor([0, 1]), 3)
    second = logit_lens(subject, torch.tensor([1, 0]), 3)
    assert torch.equal(first, second.flip(0))


def test_logits_in_memory_never_exceed_the_budget(
    tiny_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject()
    head, sizes = subject.lm.head, []
    whole = head.logits

    def count(h_BD: torch.Tensor) -> torch.Tensor:
        logits_BV = whole(h_BD)
        sizes.append(logits_BV.numel() * logits_BV.element_size())
        return logits_BV

    monkeypatch.setattr(head, "logits", count)
    logit_lens(subject, torch.arange(D_SAE), 20, memory_budget=30_000)
    assert len(sizes) > 1
    assert max(sizes) <= 30_000
