"""Generation success against counting one text at a time, and its laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steerlens import SteerlensError
from steerlens.engine.subject import Subject
from steerlens.steering.metrics import MetricRun, Texts, success
from tests.steering.metrics.texts import EOS, random_texts, text_of
from tests.support.naive import naive_logit_lens
from tests.support.tiny import D_SAE

MakeSubject = Callable[..., Subject]


def measure(texts: Texts, subject: Subject, **settings: Any) -> dict[str, list[int]]:
    return dict(success.measure(texts, subject, success.Config(**settings), MetricRun()))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "neox"])
def test_equals_counting_one_text_at_a_time(tiny_subject: MakeSubject, kind: str) -> None:
    subject = tiny_subject(kind)
    tokenizer: Any = subject.lm.tokenizer
    texts = random_texts(subject, n=60, longest=40)
    columns = measure(texts, subject)
    assert texts.features is not None
    for i in range(len(texts)):
        again = tokenizer(texts.texts[i])["input_ids"][1:]  # as the authors cut off the BOS
        generated = [token for token in texts.token_ids[i] if token != EOS]
        for k in (1, 5, 20):
            own = naive_logit_lens(subject, int(texts.features[i]), k).tolist()
            own = [token for token in own if token not in tokenizer.all_special_ids]
            assert columns[f"success_{k}"][i] == sum(token in own for token in again)
            assert columns[f"success_{k}_ids"][i] == sum(token in own for token in generated)
    assert max(columns["success_20"]) > 1


def test_more_tokens_never_count_less(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    columns = {k: np.array(v) for k, v in measure(random_texts(subject), subject).items()}
    for suffix in ("", "_ids"):
        assert (columns[f"success_1{suffix}"] <= columns[f"success_5{suffix}"]).all()
        assert (columns[f"success_5{suffix}"] <= columns[f"success_20{suffix}"]).all()


def test_a_text_of_the_features_own_tokens_counts_each_of_them(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    special = subject.lm.tokenizer.all_special_ids
    lens = [naive_logit_lens(subject, feature, 20).tolist() for feature in range(D_SAE)]
    own = [[token for token in tokens if token not in special] for tokens in lens]
    token_ids = [[*ids, *ids, EOS] for ids in own]  # twice: every occurrence counts
    words = [text_of(subject, ids) for ids in token_ids]
    columns = measure(Texts(np.arange(D_SAE), [""] * D_SAE, words, token_ids), subject)
    assert columns["success_20"] == columns["success_20_ids"] == [2 * len(ids) for ids in own]


def test_special_tokens_count_in_neither(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    for feature in range(D_SAE):
        texts = Texts(np.array([feature]), ["the"], ["<bos><eos><unk>"], [[0, 1, 2]])
        assert not any(column[0] for column in measure(texts, subject).values())


def test_other_numbers_of_tokens(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    assert list(measure(random_texts(subject), subject, k=[3])) == ["success_3", "success_3_ids"]


def test_of_a_concept_its_tokens_are_counted_too(tiny_subject: MakeSubject) -> None:
    words = [" w20 my w20", " experience", ""]
    texts = Texts(np.zeros(3, dtype=int), [""] * 3, words, [[20, 5, 20], [6], []])
    columns = success.measure(texts, tiny_subject(), success.Config(), MetricRun(concept="w20"))
    assert columns["concept_success"] == [2, 0, 0]
    assert "concept_success" not in measure(texts, tiny_subject())


@pytest.mark.parametrize("k", [[], [0, 5], [-1]])
def test_numbers_of_tokens_that_are_none_are_refused(k: list[int]) -> None:
    with pytest.raises(SteerlensError, match="at least 1"):
        success.Config(k=k)
