"""What W&B is told: rows that are safe to show, numbers by factor."""

from __future__ import annotations

import dataclasses

import pytest

from steerlens.analysis.summary import summarise
from steerlens.report.tracking.tables import factor_curves, flat, table_rows, text_rows
from tests.support.frames import NASTY, frame, generations, tables


def test_the_table_for_wandb_holds_what_is_filled_and_safe_to_show() -> None:
    [row] = table_rows(frame([0], 1, output_token=["\n"], my_score=[0.5]))
    assert row["output_token"] == "\\n"
    assert row["my_score"] == 0.5
    assert "\x1b" not in row["logit_lens_tokens"]
    assert not {"label", "logit_lens_token_ids"} & set(row)


def test_curves_are_means_over_features_at_every_factor() -> None:
    texts = generations()
    points = factor_curves(texts)
    assert [point["factor"] for point in points] == [0.0, 0.5, 2.0, 8.0]
    for point in points:
        rows = texts.loc[texts["factor"] == point["factor"]]
        for name in ("success_20", "perplexity", "degeneracy"):
            assert point[f"by_factor/{name}"] == pytest.approx(rows[name].mean())


def test_controls_are_not_in_the_curves() -> None:
    texts = generations()
    control = texts.assign(control="random_direction", success_20=99)
    import pandas as pd

    assert factor_curves(pd.concat([texts, control])) == factor_curves(texts)


def test_texts_are_those_of_the_best_features_without_and_at_the_best_factor() -> None:
    found = tables(success_20=[0.5, None, 3.0, 1.0, 0.0, 2.0] * 2)
    rows = text_rows(found, 1000)
    features = list(dict.fromkeys((row["layer"], row["feature"]) for row in rows))
    assert features[:4] == [(0, 2), (1, 2), (0, 5), (1, 5)]
    assert {row["feature"] for row in rows} == {0, 2, 3, 4, 5}
    assert {row["factor"] for row in rows} == {0.0, 2.0}
    assert len(rows) == 10 * 2 * 4
    assert text_rows(found, 7) == rows[:7]
    costs = found.generations.assign(kl=0.5, relative_dose=0.1)
    (row,) = text_rows(dataclasses.replace(found, generations=costs), 1)
    assert (row["kl"], row["relative_dose"]) == (0.5, 0.1)


def test_texts_and_prompts_are_escaped() -> None:
    found = tables()
    texts = found.generations.assign(text="".join(NASTY), prompt="a\x1b[0m\nb")
    for row in text_rows(dataclasses.replace(found, generations=texts), 20):
        assert row["text"].isprintable()
        assert row["prompt"] == "a\\x1b[0m\\nb"


def test_the_summary_is_flat_with_the_numbers_of_the_payoff() -> None:
    found = flat(summarise(tables()))
    assert found["steering.features"] == 12
    assert found["steering.payoff.0.1.success.value"] == 1.0
    assert not any(isinstance(value, dict | list) for value in found.values())
