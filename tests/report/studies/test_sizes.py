"""How much data answers need, from tables in which it is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.factors import choose_factors
from steerlens.analysis.series import Series
from steerlens.config.schema import ChoiceConfig, StudyConfig
from steerlens.report.studies.sizes import answer
from steerlens.results.folder import RunTables
from tests.support.frames import frame, generations

N = 200


def sizes(*series: Series) -> tuple[list[str], pd.DataFrame]:
    found = answer(series, StudyConfig("sizes"))
    assert found.figures["sizes"]().axes
    return list(found.sentences), found.tables["sizes"]


def noisy(noise: float, **settings: int) -> Series:
    rng = np.random.default_rng(int(noise * 100))
    true = np.linspace(0, 1, N)
    table = frame((0,), N, input_score=np.clip(true + noise * rng.normal(size=N), -9, 9))
    named = {name.replace("__", "."): str(value) for name, value in settings.items()}
    return Series(str(settings), [], RunTables(table), settings=named)


def test_the_input_score_is_held_against_that_of_the_most_text() -> None:
    series = [
        noisy(noise, corpus__n_tokens=tokens)
        for tokens, noise in ((100, 1.0), (1000, 0.05), (10000, 0.0))
    ]
    said, table = sizes(*series)
    assert table["size"].tolist() == [100, 1000, 10000]
    assert table["agreement"].iloc[0] < 0.8
    assert table["agreement"].iloc[2] == pytest.approx(1)
    assert "from 10,000 tokens from 1,000 on" in said[0]


def test_from_little_text_few_features_have_a_score_and_that_is_told() -> None:
    little, much = noisy(0.01, corpus__n_tokens=100), noisy(0.0, corpus__n_tokens=1000)
    little.tables.features.loc[: N // 2 - 1, "input_score"] = None
    said, table = sizes(little, noisy(0.0, corpus__n_tokens=500), much)
    assert table["features"].tolist() == [N // 2, N, N]
    assert f"over {N // 2} features, of {N} with a score" in said[0]


def test_tokens_and_sentences_are_told_apart_in_a_grid() -> None:
    series = [
        noisy(0.3 / examples, corpus__n_tokens=tokens, score__input__max_examples=examples)
        for tokens in (100, 1000)
        for examples in (5, 10, 20)
    ]
    _, table = sizes(*series)
    found = {name: part["size"].tolist() for name, part in table.groupby("answer")}
    assert found == {"S_in by tokens": [100, 1000], "S_in by sentences": [5, 10, 20]}


def test_labels_of_sizes_are_numbers_apart_from_each_other() -> None:
    series = [noisy(0.1, corpus__n_tokens=tokens) for tokens in (12500, 25000, 40000, 50000)]
    axes = answer(series, StudyConfig("sizes")).figures["sizes"]().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["12.5k", "25k", "50k"]


def test_more_prompts_bring_the_output_score_nearer_to_that_of_all() -> None:
    rng = np.random.default_rng(0)
    by_prompt = np.linspace(0, 1, N)[:, None] + 0.3 * rng.normal(size=(N, 20))
    table = frame((0,), N, output_score_by_prompt=by_prompt.tolist(), input_score=None)
    said, found = sizes(Series("a", [], RunTables(table)))
    assert found["size"].tolist() == [1, 2, 3, 5, 10, 15, 20]
    assert found["agreement"].is_monotonic_increasing
    one = pd.Series(by_prompt[:, 0]).corr(pd.Series(by_prompt.mean(1)), method="spearman")
    assert found["agreement_low"].iloc[0] - 0.1 < one < found["agreement_high"].iloc[0] + 0.1
    assert "S_out: within 5 % of the answer from 20 prompts" in said[0]


def test_factors_from_more_prompts_lose_less_and_from_all_nothing() -> None:
    texts = generations(n=12, prompts=[f"prompt {i}" for i in range(3)])
    choice = ChoiceConfig()
    table = RunTables(frame((0, 1), 12, input_score=None), texts, choice=choice)
    _, found = sizes(Series("a", [], table))
    factor = found.loc[found["answer"] == "best factor"]
    assert factor["agreement"].iloc[0] < factor["agreement"].iloc[-1] == pytest.approx(1)
    assert (factor["agreement"] <= 1 + 1e-9).all()
    payoff = found.loc[found["answer"] == "payoff"]
    assert payoff["agreement"].iloc[-1] == pytest.approx(1)
    assert len(choose_factors(texts, choice)) == 24
