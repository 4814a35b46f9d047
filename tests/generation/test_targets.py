"""Several features in one row: what is steered, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import steerlens
from steerlens.generation.targets import companions, row_targets, together
from steerlens.subject import Subject
from tests.support.generating import GREEDY, ids_of, rows_of, texts_of

MakeSubject = Callable[..., Subject]
PROMPT = "In my experience,"


def test_a_control_names_the_other_features() -> None:
    assert together([5, 9, 30]) == "+9+30"
    assert companions("+9+30") == [9, 30]
    assert together([5]) == ""
    assert companions("") == companions("random_direction") == []


def test_each_of_several_features_has_an_equal_share(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    batch = rows_of([5], [2.0], ["the"], controls=["", "+9+30"])
    targets = row_targets(subject, batch, None, 0)
    third = 1 / 3
    assert targets.weights_BN.flatten().tolist() == pytest.approx([1, 0, 0, third, third, third])
    assert targets.features_BN is not None
    assert targets.features_BN[1].tolist() == [5, 9, 30]


@pytest.mark.parametrize("operator", ["add", "clamp", "min_clamp", "ablate"])
def test_several_features_write_what_steer_writes(
    tiny_subject: MakeSubject, operator: str
) -> None:
    """The texts of a batch of groups of different sizes equal those of the model's own generate."""
    subject = tiny_subject("llama", "jumprelu")
    factor = 1.0 if operator == "ablate" else 6.0
    groups: dict[str, list[int]] = {"": [5], "+9": [5, 9], "+9+30": [5, 9, 30]}
    rows = rows_of([5], [factor], [PROMPT], controls=list(groups))
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
