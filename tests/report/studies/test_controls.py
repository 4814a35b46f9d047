"""Planted effects are found, none are where there are none, and what isn't there is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.arms import MEASURES, signed_arms, texts_of
from steerlens.analysis.series import Series
from steerlens.config.schema import ChoiceConfig, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies import Answer, write_answer
from steerlens.report.studies.controls import answer
from steerlens.results import FEATURES, GENERATIONS, STEERING
from steerlens.results.folder import RunTables

CHOICE = ChoiceConfig(rule="budget", split=True)
STUDY = StudyConfig("controls")
FACTORS = (-4.0, -1.0, 0.0, 1.0, 4.0)
CONTROLS = (None, "random_direction", "random_feature")
Chance = Callable[[str | None, float], float]


def nothing(control: str | None, factor: float) -> float:
    return 0.4


def planted(control: str | None, factor: float) -> float:
    """Only the feature's own direction changes how often its tokens come."""
    return 0.4 if control else {-4.0: 0.0, -1.0: 0.3, 0.0: 0.4, 1.0: 0.6, 4.0: 0.97}[factor]


def ablated(control: str | None, factor: float) -> float:
    return 0.0 if factor == 1 and control is None else 0.6


def result(
    chance: Chance = planted,
    factors: Sequence[float] = FACTORS,
    controls: Sequence[str | None] = CONTROLS,
    n: int = 24,
    prompts: int = 60,
    operator: str = "add",
) -> Series:
    """Texts with a token of the feature with a probability of its arm; perplexity rises with the
    strength, above twice the unsteered at 4 for the last feature."""
    rng = np.random.default_rng(0)
    rows = []
    for feature in range(n):
        for control in controls:
            for factor in factors:
                hits = rng.random(prompts) < chance(control, factor)
                broken = feature == n - 1 and factor != 0
                rows += [
                    {
                        "feature": feature,
                        "control": control,
                        "factor": factor,
                        "prompt": f"prompt {place:02}",
                        "success_20": int(hit) * (1 + feature % 2),
                        "perplexity": 20.0 + 2 * abs(factor) + 100 * broken,
                        "degeneracy": 0.1 + 0.1 * abs(factor),
                        "distinct_2": 0.9 - 0.1 * abs(factor),
                        "first_step_kl": abs(factor) * (place % 2),
                    }
                    for place, hit in enumerate(hits)
                ]
    subject = {"model": "toy", "sae": "toy-sae", "hook_name": "h", "layer": 3}
    features = [{**subject, "feature": feature, "output_score": 0.5} for feature in range(n)]
    return Series(
        f"steer={operator}",
        ["0"],
        RunTables(
            FEATURES.frame(features),
            GENERATIONS.frame(pd.DataFrame(rows).assign(**subject, sample=0)),
            STEERING.frame([]),
            choice=CHOICE,
            operator=operator,
            study=STUDY,
        ),
    )


def both() -> list[Series]:
    return [result(), result(ablated, (0.0, 1.0), operator="ablate")]


@pytest.fixture(scope="module")
def found() -> Answer:
    return answer(both(), STUDY)


@pytest.fixture(scope="module")
def tests(found: Answer) -> pd.DataFrame:
    return found.tables["controls"].set_index(["arm", "test"])


def test_planted_effects_are_found_in_every_arm(tests: pd.DataFrame) -> None:
    for arm, sign, n in (("amplify", ">", 23), ("suppress", "<", 23), ("ablation", "<", 24)):
        for other in ("unsteered", "random_direction", "random_feature"):
            row = tests.loc[(arm, f"feature {sign} {other}")]
            assert row["features"] == n
            assert row["q_0.05"] >= 0.9 * n
            assert row["q_0.05"] <= row["p_0.05"] <= row["testable"]
            assert row["difference_low"] <= row["difference"] <= row["difference_high"]
            assert row["difference"] == pytest.approx(row["share"] - row["share_other"])
            assert (row["difference"] > 0) == (sign == ">")
    assert tests.loc[("ablation", "feature < unsteered"), "pairs"] == 60
    assert tests.loc[("amplify", "feature > unsteered"), "pairs"] == 30


def test_nothing_is_found_among_controls(tests: pd.DataFrame) -> None:
    null = tests.loc["nothing"]
    assert set(null.index) == {
        "random_direction > random_feature",
        "random_feature > random_direction",
        "unsteered again > unsteered",
    }
    assert set(null["q_0.05"]) == {0}
    assert null["p_0.05"].sum() <= 6  # of 69, with 2 to be expected
    assert (null["by_chance"] > 0).all()
    assert (null["by_chance"] < 0.05 * null["features"]).all()


def test_no_effect_is_no_discovery() -> None:
    table = answer([result(nothing)], STUDY).tables["controls"]
    assert set(table["q_0.05"]) == {0}
    assert sum(table["p_0.05"]) > 0  # without correction some would be


def test_arms_stand_beside_what_they_cost(found: Answer) -> None:
    arms = found.tables["controls_arms"].set_index(["arm", "factor", "steered"])
    assert arms.loc[("unsteered", "0", "unsteered"), "features"] == 24
    for factor in ("1", "4"):
        strong = arms.loc[("amplify", factor, "feature")]
        assert strong["degeneracy"] == pytest.approx(0.1 + 0.1 * float(factor))
        assert strong["distinct_2"] == pytest.approx(0.9 - 0.1 * float(factor))
        assert strong["first_step_kl"] == pytest.approx(float(factor) / 2)
    chosen = arms.loc[("amplify", "chosen", "feature")]
    assert chosen["features"] == 23
    assert chosen["success_20"] > 1.2
    assert chosen["degeneracy"] == pytest.approx(0.5)
    steered = {key[2] for key in arms.index if key[0] == "suppress"}
    assert steered == {"feature", "random_direction", "random_feature", "unsteered"}


def test_means_and_differences_are_those_of_loops(found: Answer) -> None:
    texts = result().tables.generations
    texts = texts.loc[texts["factor"] == 4].assign(control=texts["control"].fillna(""))
    less = found.tables["controls_differences"].set_index(["arm", "factor", "baseline"])
    row = less.loc[("amplify", "4", "random_feature")]
    for name in ("success_20", "degeneracy"):
        changes = []
        for feature in range(24):
            own, other = (
                texts.loc[(texts["feature"] == feature) & (texts["control"] == control), name]
                for control in ("", "random_feature")
            )
            changes.append(own.mean() - other.mean())
        assert row[name] == pytest.approx(np.mean(changes))
    assert row["features"] == 24
    assert less.loc[("amplify", "chosen", "random_direction"), "degeneracy"] == pytest.approx(0)
    assert {f"{name}_low" for name in MEASURES} <= set(less.columns)


def test_factors_are_chosen_on_the_prompts_that_are_not_tested() -> None:
    texts = texts_of([result().tables.generations])
    first = sorted(set(texts["prompt"]))[::2]
    # On the first half 1 is best; on the other, where it would show, 4.
    texts["success_20"] = np.where(
        texts["prompt"].isin(first), texts["factor"] == 1, texts["factor"] == 4
    ).astype(float)
    arm = next(arm for arm in signed_arms(texts, CHOICE) if arm.factor is None)
    own = arm.texts["feature"]
    assert set(own["factor"]) == {1.0}
    assert not set(own["prompt"]) & set(first)
    assert {len(rows) for name, rows in arm.texts.items()} == {23 * 30}


def test_to_suppress_the_factor_with_least_success_is_chosen() -> None:
    arms = list(signed_arms(texts_of([result().tables.generations]), CHOICE))
    arm = next(arm for arm in arms if arm.name == "suppress" and arm.factor is None)
    assert set(arm.texts["feature"]["factor"]) == {-4.0}


def test_every_feature_has_its_factors_and_q_values(found: Answer) -> None:
    table = found.tables["controls_features"]
    assert table["feature"].tolist() == list(range(24))
    assert set(table["output_score"]) == {0.5}
    assert table["amplify_factor"].dropna().tolist() == [4.0] * 23
    assert set(table["ablation_factor"]) == {1.0}
    rows = found.tables["controls"].set_index(["arm", "test"])
    discovered = (table["amplify_q_random_feature"] <= 0.05).sum()
    assert discovered == rows.loc[("amplify", "feature > random_feature"), "q_0.05"]


def test_the_sentences_say_what_separates_and_what_can_be_reduced(found: Answer) -> None:
    text = " ".join(found.sentences)
    assert (
        "Amplify at the factor chosen on other prompts: features whose tokens are in more" in text
    )
    assert "23 of 23 (23; " in text
    assert "of the others no reduction can be shown" in text
    assert "Ablation changes the first next-token distribution in 50% of the texts" in text
    assert "Amplify: mean success@20 differs from unsteered by" in text
    assert (
        "Amplify: mean degeneracy differs from unsteered by 0.4 (0.4 to 0.4); it can't be" in text
    )
    assert "Amplify: 1 of 24 features have no chosen factor" in text


def test_what_could_be_reduced_is_counted() -> None:
    rare = answer([result(lambda *_: 0.0, n=3)], STUDY)
    said = "Of 2 features, 0 have a token of theirs in any of these unsteered texts"
    assert any(line.startswith(said) for line in rare.sentences)
    table = rare.tables["controls"].set_index(["arm", "test"])
    row = table.loc[("suppress", "feature < unsteered")]
    assert (row["testable"], row["by_chance"], row["p_0.05"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("series", "lacking"),
    [
        (lambda: [result(factors=(0.0, 1.0))], ["Nothing is said of suppress", "of ablation"]),
        (lambda: [result(factors=(-1.0, 0.0))], ["Nothing is said of amplify"]),
        (lambda: [result(controls=(None,))], ["no random_direction", "no random_feature"]),
        (lambda: [result(controls=CONTROLS[::2])], ["no random_direction"]),
        (lambda: [result(prompts=1)], ["24 of 24 features have no chosen factor"]),
        (lambda: both()[1:], ["Nothing is said of amplify", "of suppress"]),
    ],
)
def test_what_is_not_there_is_left_out_and_said(
    series: Callable[[], list[Series]], lacking: list[str]
) -> None:
    found = answer(series(), STUDY)
    assert len(found.tables["controls_arms"])
    for part in lacking:
        assert part in " ".join(found.sentences)
    for draw in found.figures.values():
        assert draw().axes


def test_the_same_texts_twice_and_no_texts_are_refused() -> None:
    with pytest.raises(SteerlensError, match="steer the same features at the same factors"):
        answer([result(), result()], STUDY)
    with pytest.raises(SteerlensError, match="nothing was steered"):
        answer([Series("a", [], RunTables(FEATURES.frame([])))], STUDY)


def test_features_steered_together_are_no_arm() -> None:
    series = result(controls=(None, "+7+8"))
    assert set(answer([series], STUDY).tables["controls_arms"]["steered"]) == {
        "feature",
        "unsteered",
    }


def test_the_answer_is_written(tmp_path: Path, undrawn_figures: None) -> None:
    summary, figures = write_answer(both(), tmp_path)
    assert summary is not None
    rows: dict[str, list[Any]] = summary["tables"]
    assert list(rows) == ["controls", "controls_arms", "controls_differences", "controls_features"]
    assert (tmp_path / "controls.csv").is_file()
    assert figures["controls"][0].stat().st_size > 0
