"""Rows to generate texts for, and what a text must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest
import torch

from steerlens.config.schema import GenerationConfig, SteerConfig
from steerlens.engine.generation import ROW, generate, row_batches
from steerlens.engine.subject import Subject
from steerlens.scores import RunContext
from tests.support.naive_steering import naive_text

EOS = 1
PROMPTS = ("In my experience,", "Note that", "the", "From the experience, that w60 w61")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 6, "stop": None}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "max_new_tokens": 8, "stop": None}
EDIT = ("operator", "unit", "keep_error", "positions", "default_max_activation")


def rows_of(
    features: Sequence[int] = (5, 9),
    factors: Sequence[float] = (0.0, 2.0, -3.0),
    prompts: Sequence[str] = PROMPTS[:3],
    controls: Sequence[str] = ("",),
    samples: int = 1,
    together: Sequence[str] = ("",),
) -> pd.DataFrame:
    """All combinations, columns `ROW`."""
    every = [features, controls, together, factors, prompts, range(samples)]
    return pd.MultiIndex.from_product(every, names=ROW).to_frame(index=False)


def mixed_rows(strength: float = 1.0) -> pd.DataFrame:
    """A few rows that differ in everything, in no order of length; factors are `strength` times
    what changes the texts of most SAEs. The tiny temporal one has far smaller activations."""
    given = [(5, 0.5, 1), (9, -1.0, 0), (5, 0.0, 2), (30, 1.5, 2), (9, 0.0, 3), (5, 3.0, 3)]
    rows = [(feature, "", "", strength * s, PROMPTS[place], 0) for feature, s, place in given]
    return pd.DataFrame(rows, columns=pd.Index(ROW))


def texts_of(
    subject: Subject, rows: pd.DataFrame, run: RunContext | None = None, **settings: Any
) -> pd.DataFrame:
    """`generate` with settings of steering and of generation in any order."""
    edit = {name: settings.pop(name) for name in EDIT if name in settings}
    config = GenerationConfig(**settings)
    return generate(subject, rows, SteerConfig(**edit), config, run or RunContext())


def ids_of(texts: pd.DataFrame) -> list[list[int]]:
    """The new tokens of all texts."""
    return [list(ids) for ids in texts["token_ids"]]


def assert_equal_texts(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """The same tokens in all rows, but in the few that are known to hang on rounding."""
    assert one[list(ROW)].to_numpy().tolist() == two[list(ROW)].to_numpy().tolist()
    assert_equal_ids(ids_of(one), two)
    same = [a == b for a, b in zip(ids_of(one), ids_of(two), strict=True)]
    assert one.loc[same, "text"].tolist() == two.loc[same, "text"].tolist()
    assert one["seed"].tolist() == two["seed"].tolist()


def assert_equal_ids(expected: Sequence[Sequence[int]], texts: pd.DataFrame) -> None:
    pairs = list(zip(expected, ids_of(texts), texts["near_ties"].tolist(), strict=True))
    different = [(list(a), b) for a, b, _ in pairs if list(a) != b]
    # Only a near tie excuses a difference, and near ties are rare.
    assert all(near > 0 for a, b, near in pairs if list(a) != b), different
    assert len(different) <= len(pairs) // 20, different


def assert_greedy_texts_equal_naive(
    subject: Subject, rows: pd.DataFrame, positions: str = "last", **operation: Any
) -> pd.DataFrame:
    """Generates greedily, and compares token for token with whole forwards."""
    texts = texts_of(subject, rows, positions=positions, **operation, **GREEDY)
    expected = []
    for feature, factor, prompt in zip(
        rows["feature"], rows["factor"], rows["prompt"], strict=True
    ):
        prompt_ids = subject.to_tokens(prompt)[0].tolist()
        ids = naive_text(
            subject, prompt_ids, [feature], factor, GREEDY["max_new_tokens"], positions,
            **operation,
        )  # fmt: skip
        expected.append(ids[: ids.index(EOS) + 1] if EOS in ids else ids)
    assert_equal_ids(expected, texts)
    return texts


def count_decoded(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """The number of rows of every call of `decode` from here on; call `fail_at` is interrupted."""
    sizes: list[int] = []
    real: Callable[..., Any] = row_batches.decode

    def counted(subject: Subject, prompts: Any, prompt_B: torch.Tensor, *rest: Any) -> Any:
        if len(sizes) + 1 == fail_at:
            raise KeyboardInterrupt
        sizes.append(len(prompt_B))
        return real(subject, prompts, prompt_B, *rest)

    monkeypatch.setattr(row_batches, "decode", counted)
    return sizes
