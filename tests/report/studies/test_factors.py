"""Rules that choose factors, from texts in which it is known what they can reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.factor_rules import (
    SAME_FACTOR,
    common_to_layers,
    held_out,
    success_at_equal_damage,
)
from steerlens.analysis.factors import choose_factors
from steerlens.analysis.series import Series
from steerlens.analysis.text_grid import chosen_factors, text_grid
from steerlens.config.schema import ChoiceConfig, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies.factors import answer
from steerlens.results import GENERATIONS
from steerlens.results.folder import RunTables
from tests.support.frames import frame

FACTORS = (0.0, 1.0, 2.0, 4.0, 8.0)
KL = ChoiceConfig(rule="kl")
PAPER = ChoiceConfig()


def texts(
    strength: np.ndarray, n_prompts: int = 12, layers: int = 1, noise: float = 0.0
) -> pd.DataFrame:
    """Texts of features on which a factor acts as `strength` times as much: success, KL, dose and
    the logarithm of perplexity all go with that dose, and so does degeneracy.
    """
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for layer in range(layers):
        for feature, gain in enumerate(strength):
            for factor in FACTORS:
                dose = gain * factor
                for prompt in range(n_prompts):
                    rows.append(
                        {
                            "model": "m", "sae": "s", "hook_name": f"h{layer}", "layer": layer,
                            "feature": feature, "factor": factor, "prompt": f"p{prompt:02}",
                            "sample": 0, "success_20": dose + noise * rng.normal(),
                            "perplexity": 10 * float(np.exp(0.2 * dose)), "kl": 0.5 * dose,
                            "relative_dose": 0.1 * dose, "degeneracy": 0.02 * dose,
                        }
                    )  # fmt: skip
    success = [row.pop("success_20") for row in rows]
    return GENERATIONS.frame(rows).assign(success_20=success)


def series(table: pd.DataFrame, choice: ChoiceConfig = KL) -> Series:
    return Series("a", [], RunTables(frame((0,), 2), table, choice=choice))


EQUAL = np.ones(10)
APART = np.array([0.25, 0.5, 1, 2] * 3)
"""Gains of features, all powers of two, so that each has a factor with the dose of the others."""


def test_factors_are_those_that_a_run_chooses() -> None:
    table = texts(APART, layers=2, noise=0.3)
    grid = text_grid(table, "success_20")
    means = grid.on(np.arange(grid.n_prompts))
    for choice in (KL, PAPER, ChoiceConfig(rule="dose", dose_budget=0.3)):
        best = choose_factors(table, choice)["best_factor"].astype(float).fillna(0).tolist()
        assert grid.factors_K[chosen_factors(means, choice)].tolist() == best


def test_at_equal_kl_all_rules_have_the_success_that_this_kl_buys() -> None:
    # Success is twice the KL whatever is chosen, so no rule can have more.
    rows = [*success_at_equal_damage(text_grid(texts(APART), "success_20"), KL)]
    of_kl = [row for row in rows if row.damage == "kl" and row.success]
    assert {row.rule for row in of_kl} == {
        SAME_FACTOR, "paper", "perplexity_ratio", "kl", "dose"
    }  # fmt: skip
    for row in of_kl:
        assert row.success is not None
        assert row.success.value == pytest.approx(2 * row.level)
        assert row.success.low == pytest.approx(2 * row.level)
        if row.over_same_factor:
            assert row.over_same_factor.value == pytest.approx(0, abs=1e-9)
    for row in of_kl:
        assert row.degeneracy == pytest.approx(0.04 * row.level)


def test_a_rule_that_spares_what_steering_breaks_has_more_at_equal_damage() -> None:
    table = texts(EQUAL)
    broken = (table["feature"] % 2 == 0) & (table["factor"] > 0)
    # Half of the features have no success and a KL four times as high.
    table = table.assign(
        success_20=table["success_20"].where(~broken, 0.0), kl=table["kl"].where(~broken, 4.0)
    )
    rows = [*success_at_equal_damage(text_grid(table, "success_20"), KL)]
    at = {(row.rule, row.level): row for row in rows if row.damage == "kl"}
    # Sound features alone at factor 4 (KL 2): a mean KL of 1, a mean success of 2.
    by_kl, same = at["kl", 1.0], at[SAME_FACTOR, 1.0]
    assert by_kl.success is not None
    assert by_kl.success.value == pytest.approx(2)
    assert same.success is not None
    assert same.success.value < 1
    assert by_kl.over_same_factor is not None
    assert by_kl.over_same_factor.low is not None
    assert by_kl.over_same_factor.low > 0
    text = " ".join(answer([series(table)], StudyConfig()).sentences)
    assert "surely more than with the same factor for all: kl" in text


def test_factors_of_noiseless_texts_hold_on_all_other_prompts() -> None:
    grid = text_grid(texts(APART, n_prompts=15), "success_20")
    rows = [*held_out(grid, KL, ["kl", "dose"])]
    assert [(row.rule, row.prompts, row.prompts_counted) for row in rows] == [
        ("kl", 5, 10), ("kl", 10, 5), ("dose", 5, 10), ("dose", 10, 5)
    ]  # fmt: skip
    for row in rows:
        assert row.success == pytest.approx((1, 1, 1))
        assert row.still_allowed == pytest.approx((1, 1, 1))
        assert row.with_factor == 1


def test_more_prompts_hold_better_where_texts_are_noisy() -> None:
    grid = text_grid(texts(EQUAL, n_prompts=26, noise=4.0), "success_20")
    few, _, many = held_out(grid, ChoiceConfig(rule="dose"), ["dose"])
    assert few.success is not None
    assert many.success is not None
    assert few.success.value < many.success.value < 1


def test_a_common_dose_fits_features_that_a_common_factor_does_not() -> None:
    # With a budget of 1 nat a gain g has its best factor at 2 / g.
    rows = {row.common: row for row in common_to_layers(text_grid(texts(APART), "success_20"), KL)}
    for common in ("relative_dose", "kl"):
        assert rows[common].merit == pytest.approx((1, 1, 1))
        assert rows[common].success == pytest.approx(rows[common].success_of_each)
    assert rows["kl"].value == pytest.approx(1)
    assert rows["relative_dose"].value == pytest.approx(0.2)
    factor = rows["factor"].merit
    assert factor is not None
    assert factor.high is not None
    assert factor.high < 1
    equal = {row.common: row for row in common_to_layers(text_grid(texts(EQUAL), "success_20"), KL)}
    assert equal["factor"].merit == pytest.approx((1, 1, 1))
    text = " ".join(answer([series(texts(APART))], StudyConfig()).sentences)
    assert "One KL for all features of a layer keeps 100% of the merit" in text
    assert "surely less in 1 of 1 layer." in text


def test_of_few_features_nothing_is_claimed_and_all_is_drawn_of_many() -> None:
    few = answer([series(texts(APART[:3]))], StudyConfig())
    assert few.sentences == ["3 features can't say which rule chooses better: it takes at least 8."]
    ends = few.tables["factors_damage"]["success_low"]
    assert all(ends.isna().tolist())
    found = answer([series(texts(APART))], StudyConfig())
    assert set(found.tables) == {"factors_damage", "factors_prompts", "factors_common"}
    figure = found.figures["factors"]()
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (texts(EQUAL).head(0), "add steer=grid"),
        (texts(EQUAL, n_prompts=1), "at least two prompts"),
        (texts(EQUAL).assign(kl=np.nan), "texts with kl"),
        (texts(EQUAL).iloc[12:], "leave steer.search out"),
    ],
)
def test_texts_that_say_nothing_are_one_sentence(table: pd.DataFrame, sentence: str) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        answer([series(table)], StudyConfig())
