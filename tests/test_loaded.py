"""The tiny models that tests share are those that no test has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from steerlens.engine.subject import Subject

MakeSubject = Callable[..., Subject]


def weight(subject: Subject) -> None:
    subject.lm.head.weight.data[0, 0] += 1


def dtype(subject: Subject) -> None:
    model: Any = subject.lm.bridge.original_model
    model.to(torch.bfloat16)


def hook(subject: Subject) -> None:
    subject.lm.bridge.embed.register_forward_pre_hook(lambda *_: None)


def hook_of_the_bridge(subject: Subject) -> None:
    subject.lm.bridge.add_hook("blocks.1.hook_in", lambda x, hook: x)


def setting_of_the_model(subject: Subject) -> None:
    model: Any = subject.lm.bridge.original_model
    model.generation_config.eos_token_id = 7


def setting_of_the_bridge(subject: Subject) -> None:
    subject.lm.bridge.cfg.n_ctx = 5


def tokenizer(subject: Subject) -> None:
    subject.lm.tokenizer.chat_template = "a"


@pytest.mark.parametrize(
    "change",
    [weight, dtype, hook, hook_of_the_bridge, setting_of_the_model, setting_of_the_bridge,
     tokenizer],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_a_changed_model_is_loaded_anew(
    tiny_subject: MakeSubject, change: Callable[[Subject], None]
) -> None:
    subject = tiny_subject()
    again = tiny_subject()
    assert again.lm is subject.lm
    assert again.sae is not subject.sae
    change(subject)
    other = tiny_subject()
    assert other.lm is not subject.lm
    assert tiny_subject().lm is other.lm
