"""Texts of many rows at once against one text at a time, in any grouping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerlens import SteerlensError
from steerlens.config.compose import compose
from steerlens.config.schema import OPERATORS, POSITIONS, RANDOM_DIRECTION
from steerlens.corpus_pass import activations_of, read_corpus
from steerlens.generation import ROW, _random_like, _targets, prompt_tokens
from steerlens.scores import ScoreRun, activation
from steerlens.store import Store
from steerlens.subject import Subject
from tests.support.generating import (
    GREEDY,
    PROMPTS,
    SAMPLED,
    assert_equal_ids,
    assert_equal_texts,
    assert_greedy_texts_equal_naive,
    count_decoded,
    ids_of,
    mixed_rows,
    rows_of,
    texts_of,
)
from tests.support.naive_steering import naive_text
from tests.support.tiny import MODELS

MakeSubject = Callable[..., Subject]
SITES = ("resid_pre", "resid_mid", "attn_out", "attn.hook_z", "mlp_out")


@pytest.mark.parametrize("kind", list(MODELS))
def test_every_model_and_policy_equals_naive(tiny_subject: MakeSubject, kind: str) -> None:
    subject = tiny_subject(kind, "jumprelu")
    found = [
        assert_greedy_texts_equal_naive(subject, mixed_rows(), positions) for positions in POSITIONS
    ]
    assert len({str(ids_of(texts)) for texts in found}) >= 3  # last and all are much alike


@pytest.mark.parametrize("site", SITES)
def test_every_site_equals_naive(tiny_subject: MakeSubject, site: str) -> None:
    subject = tiny_subject("gemma2", "topk", site=site)
    for positions in ("last", "all"):
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


@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize(
    ("operator", "unit"),
    [(operator, "a_max") for operator in OPERATORS] + [("add", unit) for unit in ("norm", "one")],
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
        SAMPLED,
        {**SAMPLED, "top_k": 7},
        {**SAMPLED, "top_p": 0.7, "temperature": 1.3, "positions": "all"},
        {**SAMPLED, "top_k": 20, "top_p": 0.9, "stop": ["w7", "."], "unit": "norm"},
    ],
)
def test_texts_are_the_same_however_rows_are_grouped(
    subject: Subject, settings: dict[str, Any]
) -> None:
    rows = rows_of(features=[5, 30], factors=[0.0, 1.0], prompts=PROMPTS)
    together = texts_of(subject, rows, **settings)
    for size in (1, 3, 64):
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
    rows = rows_of(prompts=PROMPTS, factors=[2.0], controls=["", RANDOM_DIRECTION])
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
    one, two = (texts_of(subject, rows, ScoreRun(seed=seed), **SAMPLED) for seed in (0, 1))
    assert all(a != b for a, b in zip(ids_of(one), ids_of(two), strict=True))
    assert len({tuple(ids) for ids in ids_of(one)}) == len(rows)
    assert len(set(one["seed"]) | set(two["seed"])) == 2 * len(rows)
    assert ids_of(texts_of(subject, rows, ScoreRun(seed=0), **SAMPLED)) == ids_of(one)


def test_a_prompt_that_leaves_no_room_is_refused(subject: Subject) -> None:
    long = " ".join(["the"] * 57)  # 58 tokens of 64, BOS included
    rows = rows_of(prompts=["the", long], features=[5], factors=[1.0])
    assert len(texts_of(subject, rows, **GREEDY)) == 2
    with pytest.raises(SteerlensError, match=r"has 58 tokens; .*=7 more .* in the 64 that"):
        texts_of(subject, rows, **{**GREEDY, "max_new_tokens": 7})


def test_the_last_token_that_fits_is_generated_rightly(subject: Subject) -> None:
    rows = rows_of(prompts=[" ".join(["the"] * 57), "my"], features=[5], factors=[4.0])
    assert_greedy_texts_equal_naive(subject, rows)


def test_a_chat_template_that_is_not_there_is_refused(subject: Subject) -> None:
    with pytest.raises(SteerlensError, match="has no chat template; use generation"):
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
    ids = prompt_tokens(subject, "my experience", chat_template=True)
    assert ids == expected == [0, 20, 5, 6, 21, 22]
    rows = rows_of(features=[5], factors=[0.5], prompts=["my experience"])
    texts = texts_of(subject, rows, chat_template=True, **GREEDY)
    assert_equal_ids([naive_text(subject, ids, [5], 0.5, 6)], texts)
    assert ids_of(texts) != ids_of(texts_of(subject, rows, **GREEDY))


def control_vectors(subject: Subject, rows: pd.DataFrame, seed: int = 0) -> torch.Tensor:
    return _targets(subject, rows, None, seed).vectors_BND[:, 0]


def test_a_random_direction_is_as_long_as_the_decoder_row(subject: Subject) -> None:
    rows = rows_of(prompts=["the"], factors=[0.5, 2.0], controls=["", RANDOM_DIRECTION])
    vectors = control_vectors(subject, rows)
    is_random = (rows["control"] == RANDOM_DIRECTION).to_numpy()
    features = torch.tensor(rows["feature"].tolist())
    decoder = subject.sae.W_dec[features]
    torch.testing.assert_close(vectors.norm(dim=-1), decoder.norm(dim=-1))
    assert torch.equal(vectors[~is_random], decoder[~is_random])
    cosine = torch.cosine_similarity(vectors, decoder)[is_random]
    assert cosine.abs().max() < 0.8


def test_a_random_direction_is_one_for_each_seed_layer_and_feature(subject: Subject) -> None:
    rows = rows_of(factors=[0.5, 2.0], samples=2, controls=[RANDOM_DIRECTION])
    vectors = control_vectors(subject, rows)
    of_5, of_9 = (vectors[(rows["feature"] == feature).to_numpy()] for feature in (5, 9))
    assert (of_5 == of_5[0]).all()
    assert (of_9 == of_9[0]).all()
    ones = torch.ones(32)
    first = _random_like(ones, 0, 2, 5)
    assert torch.equal(first, _random_like(ones, 0, 2, 5))
    for other in ((1, 2, 5), (0, 3, 5), (0, 2, 6)):
        assert abs(float(torch.cosine_similarity(first, _random_like(ones, *other), dim=0))) < 0.8
    assert not torch.equal(control_vectors(subject, rows, seed=1), vectors)


def test_a_random_direction_gives_another_text_and_its_factor_0_the_same(subject: Subject) -> None:
    rows = rows_of(features=[5], factors=[0.0, 5.0], controls=["", RANDOM_DIRECTION])
    texts = texts_of(subject, rows, **GREEDY)
    groups = dict(iter(texts.groupby(["control", "factor"])))
    mine, random = (
        [ids_of(groups[control, factor]) for factor in (0.0, 5.0)]
        for control in ("", RANDOM_DIRECTION)
    )
    assert mine[0] == random[0]
    assert mine[1] != random[1]


@pytest.fixture
def corpus_run(tmp_path: Path) -> ScoreRun:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the w{20 + i} of w{60 + i % 7} my experience" for i in range(12)))
    corpus = compose(["corpus=text", f"corpus.path={text}"]).corpus
    return ScoreRun(corpus=corpus, store=Store(tmp_path / "cache"))


def maxima(subject: Subject, run: ScoreRun) -> np.ndarray:
    read_corpus([subject], [activation.Config()], run)
    return activations_of(subject, None, run).max_F.astype(float)


def test_max_activation_is_each_features_own(
    tiny_subject: MakeSubject, corpus_run: ScoreRun
) -> None:
    subject = tiny_subject("llama", "topk")
    max_F = maxima(subject, corpus_run)
    firing = np.flatnonzero(max_F > 0)[:2].tolist()
    assert len(firing) == 2
    settings = {"unit": "max_activation", "positions": "all"}
    for operator in ("add", "clamp"):
        rows = rows_of(firing, [2.0], PROMPTS[:2])
        texts = texts_of(subject, rows, corpus_run, operator=operator, **settings, **GREEDY)
        expected = [
            naive_text(
                subject, subject.to_tokens(prompt)[0].tolist(), [feature], 2.0, 6,
                max_activation=float(max_F[feature]), operator=operator, **settings,
            )
            for feature, prompt in zip(rows["feature"], rows["prompt"], strict=True)
        ]  # fmt: skip
        assert_equal_ids(expected, texts)


@pytest.mark.parametrize("default", [None, 50.0])
def test_a_feature_that_never_fires_has_the_default_maximum(
    tiny_subject: MakeSubject, corpus_run: ScoreRun, default: float | None
) -> None:
    subject = tiny_subject("llama", "topk")
    subject.sae.b_enc.data[7] = -1000.0  # type: ignore[operator]
    max_F = maxima(subject, corpus_run)
    assert max_F[7] == 0
    expected = float(np.median(max_F[max_F > 0])) if default is None else default
    rows = rows_of([7], [2.0], ["Note that"])
    settings = {"unit": "max_activation", "positions": "all"}
    texts = texts_of(
        subject, rows, corpus_run, default_max_activation=default, **settings, **GREEDY
    )
    ids = subject.to_tokens("Note that")[0].tolist()
    naive = naive_text(subject, ids, [7], 2.0, 6, max_activation=expected, **settings)
    assert_equal_ids([naive], texts)


# Resuming


@pytest.fixture
def stored(tmp_path: Path) -> ScoreRun:
    return ScoreRun(store=Store(tmp_path / "texts"))


def test_a_killed_run_goes_on_where_it_was(
    subject: Subject, stored: ScoreRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(prompts=PROMPTS)
    whole = texts_of(subject, rows, **SAMPLED)
    settings = {**SAMPLED, "batch_size": 7}
    with monkeypatch.context() as patch:
        killed = count_decoded(patch, fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            texts_of(subject, rows, stored, **settings)
    assert killed == [7]
    again = count_decoded(monkeypatch)
    assert_equal_texts(texts_of(subject, rows, stored, **settings), whole)
    assert again == [7, 7, 3]
    assert_equal_texts(texts_of(subject, rows, stored, **settings), whole)
    assert again == [7, 7, 3]


def test_a_wider_run_generates_only_what_is_missing(
    subject: Subject, stored: ScoreRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = count_decoded(monkeypatch)
    some = rows_of([5], [0.0, 2.0], PROMPTS[:2])
    first = texts_of(subject, some, stored, **SAMPLED)
    n_done = len(some)
    for wider in (
        rows_of([5], [0.0, 2.0, 8.0], PROMPTS[:2]),
        rows_of([5], [0.0, 2.0, 8.0], PROMPTS),
        rows_of([9, 5], [0.0, 2.0, 8.0], PROMPTS),
        rows_of([9, 5], [0.0, 2.0, 8.0], PROMPTS, controls=["", RANDOM_DIRECTION]),
        rows_of([9, 5], [0.0, 2.0, 8.0], PROMPTS, controls=["", RANDOM_DIRECTION], samples=2),
    ):
        found = texts_of(subject, wider, stored, **SAMPLED)
        assert sum(sizes) == len(wider)
        assert len(found) == len(wider) > n_done
        n_done = len(wider)
        again = some.merge(found, on=list(ROW), how="left")
        assert ids_of(again) == ids_of(first)
    assert_equal_texts(texts_of(subject, wider, **SAMPLED), found)


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"temperature": 0.8}, True),
        ({"top_k": 5}, True),
        ({"top_p": 0.5}, True),
        ({"max_new_tokens": 7}, True),
        ({"stop": "."}, True),
        ({"operator": "clamp"}, True),
        ({"unit": "one"}, True),
        ({"positions": "all"}, True),
        ({"keep_error": False}, True),
        ({"batch_size": 3}, False),
        ({"samples": 2}, False),  # says which rows there are, not what is in them
        ({"default_max_activation": 50.0}, False),  # of another unit
    ],
)
def test_what_changes_texts_generates_anew_and_nothing_else(
    subject: Subject,
    stored: ScoreRun,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    anew: bool,
) -> None:
    rows = rows_of([5], [0.0, 2.0], PROMPTS[:2])
    texts_of(subject, rows, stored, **SAMPLED)
    sizes = count_decoded(monkeypatch)
    texts_of(subject, rows, stored, **{**SAMPLED, **change})
    assert sum(sizes) == (len(rows) if anew else 0)


def test_another_seed_or_sae_generates_anew(
    tiny_subject: MakeSubject, stored: ScoreRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of([5], [2.0], PROMPTS[:2])
    texts_of(tiny_subject(), rows, stored, **SAMPLED)
    sizes = count_decoded(monkeypatch)
    texts_of(tiny_subject(), rows, ScoreRun(seed=1, store=stored.store), **SAMPLED)
    assert sizes == [2]
    texts_of(tiny_subject(seed=2), rows, stored, **SAMPLED)
    assert sizes == [2, 2]
