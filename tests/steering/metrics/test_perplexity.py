"""Perplexity against the Hugging Face model's own logits, one text at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from steerlens.config.compose import compose
from steerlens.config.schema import ModelConfig
from steerlens.config.settings import parse_subject
from steerlens.engine import padding
from steerlens.engine.subject import Subject
from steerlens.steering.metrics import MetricRun, Texts, likelihood, perplexity
from steerlens.steering.metrics.likelihood import mean_negative_log_likelihood
from tests.steering.metrics.texts import random_texts
from tests.support.templates import TEMPLATE
from tests.support.tiny import D_VOCAB, MODELS

MakeSubject = Callable[..., Subject]
KINDS = ("llama", "gemma2", "gpt2", "neox")


def measure(texts: Texts, subject: Subject, **run: Any) -> list[float | None]:
    columns = perplexity.measure(texts, subject, perplexity.Config(), MetricRun(**run))
    return list(columns["perplexity"])


@torch.no_grad()
def naive(folder: Path, tokens: list[list[int]]) -> list[float]:
    """exp of the mean cross entropy in float64, from the model's own full logits."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    found = []
    for ids in tokens:
        logits_LV = model(torch.tensor([ids])).logits[0].double()
        loss = torch.nn.functional.cross_entropy(logits_LV[:-1], torch.tensor(ids[1:]))
        found.append(float(loss.exp()))
    return found


def whole(texts: Texts, subject: Subject) -> list[list[int]]:
    """Token ids of prompt and continuation with a BOS, by the tokenizer itself."""
    tokenizer: Any = subject.lm.tokenizer
    pairs = zip(texts.prompts, texts.texts, strict=True)
    return [tokenizer(prompt + text)["input_ids"] for prompt, text in pairs]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_one_text_at_a_time(
    tiny_subject: MakeSubject, tiny_folder: Callable[[str], Path], kind: str
) -> None:
    subject = tiny_subject(kind)
    texts = random_texts(subject, longest=30)
    expected = naive(tiny_folder(kind), whole(texts, subject))
    # One batch, and where the kind doesn't matter, several, and one text each.
    for budget in (2**31, 200_000, 1) if kind == "gemma2" else (2**31,):
        assert measure(texts, subject, memory_budget=budget) == pytest.approx(expected, rel=1e-5)


def test_without_bos_the_first_token_is_context(
    tiny_subject: MakeSubject, tiny_folder: Callable[[str], Path]
) -> None:
    subject = tiny_subject("gpt2", metadata={"prepend_bos": False})
    texts = random_texts(subject)
    tokens = [ids[1:] for ids in whole(texts, subject)]
    keep = [i for i, ids in enumerate(tokens) if len(ids) > 1]
    found = measure(texts, subject)
    expected = naive(tiny_folder("gpt2"), [tokens[i] for i in keep])
    assert [found[i] for i in keep] == pytest.approx(expected, rel=1e-5)
    assert all(found[i] is None for i in set(range(len(tokens))) - set(keep))


def test_texts_that_are_too_short_or_too_long_are_null(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama")
    words = ["", " the", " the" * 62, " the" * 63]  # 64 tokens of context, BOS and prompt included
    texts = Texts(np.zeros(5, np.int64), ["", *["the"] * 4], ["", *words], [[]] * 5)
    null = [value is None for value in measure(texts, subject)]
    assert null == [True, False, False, False, True]


def test_another_evaluator_reads_the_text_its_own_way(
    tiny_subject: MakeSubject, tiny_folder: Callable[[str], Path]
) -> None:
    subject = tiny_subject("gpt2", metadata={"prepend_bos": False})
    texts = random_texts(subject)
    entry = ModelConfig(name="judge", path=str(tiny_folder("neox")))
    evaluator = perplexity.load_evaluator(entry, parse_subject(compose([])))
    expected = naive(tiny_folder("neox"), whole(texts, subject))
    assert measure(texts, subject, evaluator=evaluator) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def naive_of_answers(folder: Path, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    """exp of the mean cross entropy of the answers alone, each after its request, in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    perplexities = []
    for request, answer in pairs:
        logits_LV = model(torch.tensor([request + answer])).logits[0].double()
        logits_LV = logits_LV[len(request) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits_LV, torch.tensor(answer))
        perplexities.append(float(loss.exp()))
    return perplexities


def test_inside_a_template_only_the_answer_counts(
    tiny_subject: MakeSubject, tiny_folder: Callable[[str], Path]
) -> None:
    subject = tiny_subject("llama")
    tokenizer: Any = subject.lm.tokenizer
    tokenizer.chat_template = TEMPLATE
    texts = random_texts(subject)
    texts = dataclasses.replace(texts, texts=["", *texts.texts[1:]])
    pairs = [
        (
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
            ),
            tokenizer(text, add_special_tokens=False)["input_ids"],
        )
        for prompt, text in zip(texts.prompts, texts.texts, strict=True)
    ]
    got = measure(texts, subject, chat_template=True)
    written = [index for index, (_, answer) in enumerate(pairs) if answer]
    expected = naive_of_answers(tiny_folder("llama"), [pairs[index] for index in written])
    assert [got[index] for index in written] == pytest.approx(expected, rel=1e-4)
    assert all(got[index] is None for index in range(len(pairs)) if index not in written)


def test_an_evaluator_without_a_template_reads_the_request_and_a_line_break(
    tiny_subject: MakeSubject, tiny_folder: Callable[[str], Path]
) -> None:
    subject = tiny_subject("gpt2")
    subject.lm.tokenizer.chat_template = TEMPLATE
    texts = random_texts(subject)
    entry = ModelConfig(name="judge", path=str(tiny_folder("neox")))
    evaluator = perplexity.load_evaluator(entry, parse_subject(compose([])))
    tokenizer: Any = evaluator.tokenizer
    pairs = [
        (
            tokenizer(f"{prompt}\n")["input_ids"],
            tokenizer(text, add_special_tokens=False)["input_ids"],
        )
        for prompt, text in zip(texts.prompts, texts.texts, strict=True)
    ]
    written = [index for index, (_, answer) in enumerate(pairs) if answer]
    got = measure(texts, subject, evaluator=evaluator, chat_template=True)
    expected = naive_of_answers(tiny_folder("neox"), [pairs[index] for index in written])
    assert [got[index] for index in written] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_sharing_the_prompt_changes_nothing(
    tiny_subject: MakeSubject, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, rng = tiny_subject(kind).lm, np.random.default_rng(0)
    beginnings = [[0, *rng.integers(3, D_VOCAB, n).tolist()] for n in (0, 1, 5, 15, 29)]
    prompts = [*range(5), *rng.integers(1, 5, 60).tolist()]
    texts = [
        beginnings[i] + rng.integers(3, D_VOCAB, rng.integers(1, 30)).tolist() for i in prompts
    ]
    read: list[int] = []
    lm.bridge.embed.register_forward_pre_hook(lambda _module, args: read.append(args[0].numel()))
    of_text = [beginnings[i] for i in prompts]
    shared = mean_negative_log_likelihood(lm, texts, of_text, 2**31)
    fewer = sum(read)
    read.clear()
    monkeypatch.setattr(likelihood, "_can_share", lambda lm: False)
    assert shared == pytest.approx(
        mean_negative_log_likelihood(lm, texts, of_text, 2**31), rel=1e-5
    )
    assert fewer < sum(read)


@pytest.mark.parametrize(
    ("ids", "prompt", "expected"),
    [
        ([0, 1, 2], [0, 1], 2),
        ([0, 1, 2], [0, 1, 7], 2),  # merged with what follows
        ([0, 1, 2], [0, 1, 2], 2),  # something has to be left
        ([0, 1, 2], [5, 1, 2], 0),
        ([0, 1, 2], [], 0),
    ],
)
def test_shared_tokens(ids: list[int], prompt: list[int], expected: int) -> None:
    assert likelihood._shared_length(ids, prompt) == expected


def test_running_out_of_memory_changes_nothing(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject("gemma2")
    texts = random_texts(subject, 60, longest=3)
    expected = measure(texts, subject)
    monkeypatch.setattr(padding, "ROWS", 8)
    bridge_type: Any = type(subject.lm.bridge)
    forward = bridge_type.forward
    refused: list[int] = []

    def at_most_eight(bridge: Any, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(tokens) > 8:
            refused.append(len(tokens))
            raise MemoryError
        return forward(bridge, tokens, *args, **kwargs)

    monkeypatch.setattr(bridge_type, "forward", at_most_eight)
    assert measure(texts, subject) == expected
    assert refused


def test_the_model_never_makes_logits(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject()
    made: list[int] = []
    unembed: Any = subject.lm.bridge.unembed
    unembed.register_forward_hook(lambda _module, _args, out: made.append(len(out)))
    assert all(measure(random_texts(subject), subject))
    assert made
    assert not any(made)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_with_an_unembedding_of_zeros_every_token_is_as_probable(
    tiny_subject: MakeSubject, kind: str
) -> None:
    subject = tiny_subject(kind)
    head = subject.lm.head
    texts = [[0, 5, 6], [0, 7], [3, 4, 5, 6]]
    kept = head.weight.clone()
    head.weight.zero_()
    try:
        means = mean_negative_log_likelihood(subject.lm, texts, [[0, 5], [0, 5], []], 2**20)
    finally:
        head.weight.copy_(kept)
    assert means == pytest.approx([math.log(head.d_vocab)] * 3, rel=1e-6)
