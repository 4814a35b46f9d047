"""The streamed logit lens against the whole matrix at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steerlens.engine.logit_lens import kept_logit_lens, logit_lens
from steerlens.engine.padding import ROWS
from steerlens.engine.subject import Subject
from steerlens.storage.store import Store
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


def test_what_a_store_has_is_not_computed_again(
    tiny_subject: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, subject = Store(tmp_path), tiny_subject()
    alone = logit_lens(subject, torch.arange(D_SAE), 7)
    subject.logit_lens_memo = None
    with kept_logit_lens(subject, 7, store):
        logit_lens(subject, torch.tensor([2, 9]), 5)
    computed: list[int] = []
    whole = subject.lm.head.logits

    def count(h_BD: torch.Tensor) -> torch.Tensor:
        computed.append(len(h_BD))
        return whole(h_BD)

    monkeypatch.setattr(subject.lm.head, "logits", count)
    for n_computed in (ROWS, 0):  # as many rows as a few features are padded to
        subject.logit_lens_memo = None
        with kept_logit_lens(subject, 7, store):
            assert torch.equal(logit_lens(subject, torch.tensor([9, 3, 2]), 7), alone[[9, 3, 2]])
        assert sum(computed) == n_computed
        computed.clear()
