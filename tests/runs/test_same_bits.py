"""A row's numbers are the same, to the last bit, whatever rows are computed beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerlens.engine.logit_lens import logit_lens
from steerlens.engine.subject import Subject
from steerlens.scores import RunContext, output, prompt_robustness, token_confidence
from steerlens.steering.metrics.likelihood import mean_negative_log_likelihood
from tests.support.generating import rows_of, texts_of
from tests.support.trained import trained_subject

MakeSubject = Callable[..., Subject]
PROMPTS = ("In my experience,", "Note that", "the", "From the experience, that w60 w61 w62 w63 w64")
TINY: list[tuple[str, str, dict[str, Any]]] = [
    *(("llama", "jumprelu", {}), ("gemma2", "topk", {}), ("gpt2", "standard", {})),
    *(("neox", "gated", {"site": "mlp_out"}), ("qwen3", "standard", {"site": "attn.hook_z"})),
    ("llama", "temporal", {}),
]
OFTEN = [(TINY[0], 1), (TINY[1], 1)]
SUBJECTS = [
    *OFTEN,
    *(
        pytest.param((given, n_threads), marks=pytest.mark.slow)
        for given, n_threads in [
            (TINY[1], 2),
            *((tiny, 1) for tiny in TINY[2:]),
            ("trained", 1),
            ("trained", 2),
        ]
    ),
]
"""Models with SAEs and numbers of threads."""


@pytest.fixture(params=SUBJECTS, ids=str)
def subject(request: pytest.FixtureRequest, tiny_subject: MakeSubject) -> Iterator[Subject]:
    """A subject, while torch has so many threads."""
    given, n_threads = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    if given == "trained":
        yield trained_subject()
    else:
        kind, architecture, settings = given
        yield tiny_subject(kind, architecture, **settings)
    torch.set_num_threads(before)


def splits(n: int) -> Iterator[list[slice]]:
    """`range(n)` in parts, some of them of one row."""
    for parts in ((1, 2, 3, 7, 17, 33), (33, 1, 1, 1, 5)):
        bounds = np.unique(np.minimum([0, *np.cumsum(parts), n], n)).tolist()
        yield [slice(*pair) for pair in itertools.pairwise(bounds)]


def assert_same_bits(compute: Callable[[slice], Sequence[np.ndarray]], n: int) -> None:
    expected = [np.asarray(column) for column in compute(slice(0, n))]
    for split in splits(n):
        assert sum(len(range(n)[rows]) for rows in split) == n
        parts = zip(*(compute(rows) for rows in split), strict=True)
        for column, part in zip(expected, parts, strict=True):
            assert np.concatenate([np.asarray(one) for one in part]).tolist() == column.tolist()


DTYPES = ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores(subject: Subject, dtype: str) -> None:
    cast(subject, dtype)
    features, run = np.random.default_rng(0).permutation(subject.d_sae)[:40], RunContext()
    methods: list[tuple[Any, Any]] = [
        (output, output.Config()),
        (token_confidence, token_confidence.Config()),
        (prompt_robustness, prompt_robustness.Config(prompts=["In my", "the experience"])),
    ]

    def compute(rows: slice) -> list[Any]:
        subject.logit_lens_memo = None
        columns: list[Any] = [logit_lens(subject, torch.from_numpy(features[rows]))]
        for method, config in methods:
            found = method.score(subject, features[rows], config, run)
            columns += [found[name] for name in sorted(found)]
        return columns

    assert_same_bits(compute, len(features))


@pytest.mark.parametrize("dtype", DTYPES)
def test_likelihoods(subject: Subject, dtype: str) -> None:
    cast(subject, dtype)
    rng = np.random.default_rng(0)
    vocabulary, longest = subject.lm.head.d_vocab, 40
    prompts = [[0, *rng.integers(3, vocabulary, n).tolist()] for n in (0, 1, 4, 4, 8, 9)]
    of_text = [prompts[i] for i in [0, 1, *rng.integers(0, 6, n_texts(subject) - 2).tolist()]]
    texts = [
        [*prompt[: len(prompt) - int(rng.random() < 0.2)], *rng.integers(3, vocabulary, n).tolist()]
        for prompt, n in zip(of_text, rng.integers(1, longest, len(of_text)), strict=True)
    ]
    texts = [ids if len(ids) > 1 else [*ids, 5] for ids in texts]

    def compute(rows: slice) -> list[Any]:
        return [mean_negative_log_likelihood(subject.lm, texts[rows], of_text[rows], 2**28)]

    assert_same_bits(compute, len(texts))


@pytest.mark.parametrize(
    "positions",
    ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in ("last", "generated"))],
)
def test_texts(subject: Subject, positions: str) -> None:
    alone = rows_of([5, 9, 30], [0.0, 0.5, 2.0], PROMPTS, ["", "random_direction"])
    pairs = rows_of([5, 9, 30], [0.0, 0.5, 2.0], PROMPTS, together=["1+7"])
    many = rows_of([5, 9], [1.0], PROMPTS, together=["1+2+3+4+6"])
    rows = pd.concat([alone, pairs, many], ignore_index=True)
    rows = rows.sample(n_texts(subject), random_state=0, ignore_index=True)
    model: Any = subject.lm.bridge.original_model
    model.generation_config.eos_token_id = list(range(1, subject.lm.head.d_vocab, 9))
    settings: dict[str, Any] = {"max_new_tokens": 6, "stop": None, "temperature": 0.8}
    columns = ["token_ids", "near_ties", "first_step_kl"]

    def compute(part: slice) -> list[Any]:
        texts = texts_of(subject, rows.iloc[part], positions=positions, **settings)
        texts["token_ids"] = texts["token_ids"].map(list)
        return [texts[name].to_numpy() for name in columns]

    assert_same_bits(compute, len(rows))


def is_trained(subject: Subject) -> bool:
    return subject.lm.d_model > 100


def n_texts(subject: Subject) -> int:
    """Texts enough for batches of several sizes; those of the trained model take minutes."""
    return 14 if is_trained(subject) else 42


def cast(subject: Subject, dtype: str) -> None:
    if dtype == "bfloat16" and is_trained(subject):
        pytest.skip("processors without bfloat16 take minutes for it")
    subject.lm.bridge.original_model.to(getattr(torch, dtype))
    subject.sae.to(getattr(torch, dtype))
