"""Texts of many rows at once against one text at a time, in any grouping."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens import SteerlensError
from steerlens.config.registry import parts_of
from steerlens.config.schema import CONTROLS, POSITIONS
from steerlens.engine.generation import ROW
from steerlens.engine.subject import Subject
from steerlens.scores import RunContext
from tests.support.generating import (
    GREEDY,
    PROMPTS,
    SAMPLED,
    assert_equal_ids,
    assert_equal_texts,
    assert_greedy_texts_equal_naive,
    ids_of,
    mixed_rows,
    rows_of,
    texts_of,
)
from tests.support.naive_steering import naive_text
from tests.support.pairs import some_slow
from tests.support.tiny import MODELS

MakeSubject = Callable[..., Subject]
SITES = ("resid_pre", "resid_mid", "attn_out", "attn.hook_z", "mlp_out")


@pytest.mark.parametrize(("kind", "positions"), some_slow(product(MODELS, POSITIONS)))
def test_every_model_and_policy_equals_naive(
    tiny_subject: MakeSubject, kind: str, positions: str
) -> None:
    subject = tiny_subject(kind, "jumprelu")
    assert_greedy_texts_equal_naive(subject, mixed_rows(), positions)


def test_policies_give_different_texts(subject: Subject) -> None:
    texts = [texts_of(subject, mixed_rows(), positions=name, **GREEDY) for name in POSITIONS]
    assert len({str(ids_of(of_policy)) for of_policy in texts}) >= 3  # last and all are much alike


@pytest.mark.parametrize(("site", "positions"), some_slow(product(SITES, ["last", "all"])))
def test_every_site_equals_naive(tiny_subject: MakeSubject, site: str, positions: str) -> None:
    subject = tiny_subject("gemma2", "topk", site=site)
    assert_greedy_texts_equal_naive(subject, mixed_rows(), positions)


@pytest.mark.parametrize(
    ("architecture", "site", "strength"),
    [("temporal", "resid_post", 100.0), ("skip_transcoder", "mlp_in", 2.0)],
)
def test_saes_that_look_back_or_across_equal_naive(
    tiny_subject: MakeSubject, architecture: str, site: str, strength: float
) -> None:
    subject = tiny_subject("gemma3", architecture, site=site)
    found = [
        assert_greedy_texts_equal_naive(subject, mixed_rows(strength), positions)
        for positions in POSITIONS
    ]
    assert len({str(ids_of(texts)) for texts in found}) >= 3  # last and all are much alike


@pytest.mark.parametrize(
    ("operator", "unit", "keep_error"),
    some_slow(
        (operator, unit, keep_error)
        for operator, unit in [
            *product(parts_of("operators"), ["a_max"]),
            ("add", "norm"),
            ("add", "raw"),
        ]
        for keep_error in (True, False)
    ),
)
def test_every_operator_and_unit_equals_naive(
    subject: Subject, operator: str, unit: str, keep_error: bool
) -> None:
    settings = {"operator": operator, "unit": unit, "keep_error": keep_error}
    assert_greedy_texts_equal_naive(subject, mixed_rows(), **settings)


def test_rows_with_factor_0_are_the_models_own_greedy_texts(subject: Subject) -> None:
    rows = rows_of(factors=[0.0, 5.0])
    model: Any = subject.lm.bridge.original_model
    texts = texts_of(subject, rows, keep_error=False, **GREEDY)
    expected = []
    for row in texts.loc[texts["factor"] == 0].to_dict("records"):
        ids = subject.to_tokens(row["prompt"])
        whole = model.generate(ids, max_new_tokens=GREEDY["max_new_tokens"], do_sample=False)
        expected.append(whole[0, ids.shape[1] :].tolist())
    assert_equal_ids(expected, texts.loc[texts["factor"] == 0])


@pytest.mark.parametrize(
    "settings",
    [
        GREEDY,
        pytest.param({**SAMPLED, "top_k": 7}, marks=pytest.mark.slow),
        pytest.param(
            {**SAMPLED, "top_p": 0.7, "temperature": 1.3, "positions": "all"},
            marks=pytest.mark.slow,
        ),
        {**SAMPLED, "top_k": 20, "top_p": 0.9, "stop": ["w7", "."], "unit": "norm"},
    ],
)
def test_texts_are_the_same_however_rows_are_grouped(
    subject: Subject, settings: dict[str, Any]
) -> None:
    rows = rows_of(features=[5, 30], factors=[0.0, 1.0], prompts=PROMPTS)
    together = texts_of(subject, rows, **settings)
    for size in (1, 3):
        assert_equal_texts(texts_of(subject, rows, batch_size=size, **settings), together)
    shuffled = rows.sample(frac=1, random_state=0)
    order = np.argsort(shuffled.index.to_numpy())
    other = texts_of(subject, shuffled.reset_index(drop=True), **settings)
    assert_equal_texts(other.iloc[order].reset_index(drop=True), together)
    half = len(rows) // 2 + 1
    parts = [rows.iloc[:half], rows.iloc[half:]]
    shards = [texts_of(subject, one.reset_index(drop=True), **settings) for one in parts]
    assert_equal_texts(pd.concat(shards, ignore_index=True), together)


def test_a_text_does_not_depend_on_other_features_and_prompts(subject: Subject) -> None:
    rows = rows_of(prompts=PROMPTS, factors=[2.0], controls=["", *CONTROLS])
    together = texts_of(subject, rows, **SAMPLED)
    for place in (0, 5, len(rows) - 1):
        alone = texts_of(subject, rows.iloc[[place]].reset_index(drop=True), **SAMPLED)
        assert_equal_ids(ids_of(alone), together.iloc[[place]])


def test_the_rows_come_back_in_their_order(subject: Subject) -> None:
    rows = rows_of(prompts=PROMPTS, samples=2).sample(frac=1, random_state=1, ignore_index=True)
    texts = texts_of(subject, rows, **SAMPLED)
    assert texts[list(ROW)].to_numpy().tolist() == rows.to_numpy().tolist()
    assert all(isinstance(text, str) for text in texts["text"])


def test_seeds_samples_and_rows_draw_differently(subject: Subject) -> None:
    rows = rows_of(factors=[0.0], features=[5], samples=4)
    one, two = (texts_of(subject, rows, RunContext(seed=seed), **SAMPLED) for seed in (0, 1))
    assert all(a != b for a, b in zip(ids_of(one), ids_of(two), strict=True))
    assert len({tuple(ids) for ids in ids_of(one)}) == len(rows)
    assert len(set(one["seed"]) | set(two["seed"])) == 2 * len(rows)
    assert ids_of(texts_of(subject, rows, RunContext(seed=0), **SAMPLED)) == ids_of(one)


def test_a_prompt_that_leaves_no_room_is_refused(subject: Subject) -> None:
    long = " ".join(["the"] * 57)  # 58 tokens of 64, BOS included
    rows = rows_of(prompts=["the", long], features=[5], factors=[1.0])
    assert len(texts_of(subject, rows, **GREEDY)) == 2
    with pytest.raises(SteerlensError, match=r"has 58 tokens; .*=7 more .* in the 64 that"):
        texts_of(subject, rows, **{**GREEDY, "max_new_tokens": 7})


def test_the_last_token_that_fits_is_generated_rightly(subject: Subject) -> None:
    rows = rows_of(prompts=[" ".join(["the"] * 57), "my"], features=[5], factors=[4.0])
    assert_greedy_texts_equal_naive(subject, rows)


def test_an_sae_whose_decoder_is_not_affine_steers_nothing(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    decode = subject.sae.decode
    subject.sae.decode = lambda acts: decode(acts).relu()  # type: ignore[method-assign]
    with pytest.raises(SteerlensError, match="not affine"):
        texts_of(subject, rows_of(), **GREEDY)


def test_a_chat_template_that_is_not_there_is_refused(subject: Subject) -> None:
    with pytest.raises(SteerlensError, match="has no chat template; use chat_template=false"):
        texts_of(subject, rows_of(), chat_template=True, **GREEDY)


def test_a_chat_template_wraps_the_prompt(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    tokenizer: Any = subject.lm.tokenizer
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}w20 {{ message['content'] }} w21 {% endfor %}"
        "{% if add_generation_prompt %}w22{% endif %}"
    )
    chat = [{"role": "user", "content": "my experience"}]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    ids = subject.to_tokens("my experience", chat_template=True)[0].tolist()
    assert ids == expected == [0, 20, 5, 6, 21, 22]
    rows = rows_of(features=[5], factors=[0.5], prompts=["my experience"])
    texts = texts_of(subject, rows, chat_template=True, **GREEDY)
    assert_equal_ids([naive_text(subject, ids, [5], 0.5, 6)], texts)
    assert ids_of(texts) != ids_of(texts_of(subject, rows, **GREEDY))
