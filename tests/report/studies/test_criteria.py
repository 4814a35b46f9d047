"""Scores as guides and beside each other, from tables in which the answer is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from steerlens.analysis.null_criteria import beside_null
from steerlens.analysis.series import Series
from steerlens.config.schema import ChoiceConfig, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.figures import style
from steerlens.report.studies.criteria import answer
from steerlens.results import STEERING
from steerlens.results.folder import RunTables
from tests.support.frames import frame, generations, null_scores, steering

N = 300


def series(**columns: object) -> Series:
    rng = np.random.default_rng(0)
    score = rng.random(N)
    scores = {
        "output_score": score,
        "input_score": 1 - score,  # the opposite
        "token_confidence_delta": score**3,  # the same order
        "random_score": rng.random(N),
    } | columns
    steered = steering((0,), N, success_20=score + 0.1 * rng.random(N), **scores)
    return Series("a", [], RunTables(frame((0,), N, **scores), steering=steered))


def test_scores_of_the_same_order_agree_and_share_their_first_quarter() -> None:
    table = answer([series()], StudyConfig()).tables["criteria_agreement"]
    pairs = table.set_index(["score", "other_score"])
    same = pairs.loc["output_score", "token_confidence_delta"]
    against = pairs.loc["output_score", "input_score"]
    assert same["spearman"] == pytest.approx(1)
    assert same["kendall"] == pytest.approx(1)
    assert same["top_shared"] == 1
    assert same["top"] == N // 4
    assert same["top_shared_by_chance"] == pytest.approx(1 / 4)
    assert against["spearman"] == pytest.approx(-1)
    assert against["kendall"] == pytest.approx(-1)
    assert against["top_shared"] == 0
    assert len(table) == 6


def test_kendall_and_what_is_shared_equal_a_count_of_all_pairs() -> None:
    made = series()
    row = (
        answer([made], StudyConfig())
        .tables["criteria_agreement"]
        .set_index(["score", "other_score"])
    )
    found = row.loc["output_score", "random_score"]
    a, b = (made.tables.features[name].to_numpy(float) for name in ("output_score", "random_score"))
    agree = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i in range(N) for j in range(i)]
    assert found["kendall"] == pytest.approx(np.mean(agree))
    first = [set(np.argsort(-values)[: N // 4].tolist()) for values in (a, b)]
    assert found["top_shared"] == pytest.approx(len(first[0] & first[1]) / (N // 4))


def test_the_best_guide_is_first_and_the_one_against_is_told() -> None:
    found = answer([series()], StudyConfig())
    guides = found.tables["criteria"]
    assert guides["score"].tolist()[0] in ("output_score", "token_confidence_delta")
    assert guides["score"].tolist()[-1] == "input_score"
    text = " ".join(found.sentences)
    assert "falls with input_score" in text
    assert "more than at random gives selecting by output_score, token_confidence_delta." in text


def test_scores_are_held_against_the_output_score() -> None:
    rng = np.random.default_rng(0)
    success = rng.random(N)
    made = series(
        output_score=success + rng.normal(0, 0.5, N),
        lens_precision=success + rng.normal(0, 0.1, N),
        token_confidence_delta=rng.random(N),
    )
    made.tables.steering["success_20"] = success
    result = answer([made], StudyConfig())
    rows: Any = result.tables["criteria_differences"]
    assert set(rows["measure"]) == {"rank correlation", "payoff of 25%"}
    assert set(rows["reference"]) == {"output_score"}
    differences = rows.set_index(["measure", "outcome", "pooling", "score"])["difference"]
    outcomes: Any = result.tables["criteria_outcomes"]
    correlations = outcomes.set_index(["outcome", "pooling", "score"])
    for score in ("input_score", "lens_precision", "random_score", "token_confidence_delta"):
        own, reference = (
            correlations["spearman"]["success", "pooled", name] for name in (score, "output_score")
        )
        difference = differences["rank correlation", "success", "pooled", score]
        assert difference == pytest.approx(own - reference)
    (told,) = [line for line in result.sentences if "beside that of output_score" in line]
    assert "surely better: lens_precision by" in told
    assert "not told from it: none; surely worse: 3." in told  # those that follow nothing


def test_what_unsteered_texts_have_anyway_is_no_merit_of_a_score() -> None:
    rng = np.random.default_rng(0)
    unsteered, added = rng.random(N), rng.random(N)
    made = series(output_score=unsteered, input_score=added)
    made.tables.steering["success_20"] = unsteered + added
    made.tables.steering["success_20_unsteered"] = unsteered
    table: Any = answer([made], StudyConfig()).tables["criteria_outcomes"]
    spearman = table.set_index(["outcome", "pooling", "score"])["spearman"]
    assert spearman["success", "pooled", "output_score"] > 0.5
    assert abs(spearman["success beyond unsteered", "pooled", "output_score"]) < 0.2
    assert spearman["success beyond unsteered", "pooled", "input_score"] == pytest.approx(1)


def test_a_best_guide_no_better_than_chance_is_said_to_be_none() -> None:
    rng = np.random.default_rng(1)
    same = {"output_score": rng.random(N), "input_score": rng.random(N), "success_20": 1.0}
    scores = {name: value for name, value in same.items() if name != "success_20"}
    made = Series("a", [], RunTables(frame((0,), N, **scores), steering=steering((0,), N, **same)))
    text = " ".join(answer([made], StudyConfig()).sentences)
    assert "by none of the scores is surely better than at random." in text
    assert "rises or falls with none of the scores." in text


def test_correlations_are_below_the_diagonal_and_shared_features_above() -> None:
    found = answer([series()], StudyConfig())
    axes = found.figures["criteria_agreement"]().axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    written = {tuple(map(int, text.get_position())): text for text in axes.texts}
    assert len(written) == 2 * len(found.tables["criteria_agreement"])
    for row in found.tables["criteria_agreement"].to_dict("records"):
        first, last = sorted(
            names.index(row[key].replace("_", " ")) for key in ("score", "other_score")
        )
        below, above = written[first, last], written[last, first]
        assert float(below.get_text()) == pytest.approx(row["spearman"], abs=0.0051)
        assert below.get_text() != "-0.00"
        assert above.get_text() == f"{row['top_shared']:.0%}"
        assert (below.get_color() == "white") == (abs(row["spearman"]) > 0.6)
        assert (above.get_color() == "white") == (row["top_shared"] > 0.7)  # 1/4 is chance


def test_the_figure_of_payoffs_tells_who_surely_beats_chance() -> None:
    found = answer([series()], StudyConfig())
    figure = found.figures["criteria_payoff"]()
    table = found.tables["criteria_payoff"].set_index(["pooling", "share", "score"])
    for axes, kept in zip(figure.axes, ("pooled", "within layers"), strict=True):
        rows = table.loc[(kept, 0.25)]
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        by_payoff = table.loc[("pooled", 0.25)].sort_values("payoff", ascending=False)
        assert names == [name.replace("_", " ") for name in by_payoff.index]
        points = [line for line in axes.lines if line.get_marker() == "o"]
        for name, point in zip(by_payoff.index, points, strict=True):
            row = rows.loc[name]
            assert np.asarray(point.get_xdata())[0] == row["payoff"]
            is_hollow = point.get_markerfacecolor() == "white"
            assert is_hollow == (row["p"] > 0.05)
            assert (point.get_color() == style.BLUE) == (not is_hollow and row["payoff"] > 1)
        assert np.asarray(axes.lines[0].get_xdata())[0] == 1  # chance
    assert {point.get_color() for point in points} == {style.BLUE, style.RED, style.MUTED}


def test_without_intervals_no_payoff_is_drawn() -> None:
    made = series()
    few = dataclasses.replace(made.tables, steering=made.tables.steering.head(20))
    assert "criteria_payoff" not in answer([Series("a", [], few)], StudyConfig()).figures


def test_features_that_were_only_scored_count_for_agreement() -> None:
    made = series()
    bare = Series("a", [], RunTables(made.tables.features))
    found = answer([bare], StudyConfig())
    assert found.tables["criteria"].empty
    assert "Nothing was steered" in found.sentences[0]
    assert len(found.tables["criteria_agreement"]) == 6


def test_one_score_is_refused() -> None:
    table = frame((0,), 10, input_score=None)
    with pytest.raises(SteerlensError, match="at least two scores"):
        answer([Series("a", [], RunTables(table))], StudyConfig())


def test_the_output_scores_place_among_random_directions_takes_part() -> None:
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.random(N // 2), 5 + rng.random(N // 2)])  # by layer
    p = rng.random(N)
    columns = {"output_score": score, "output_score_p": p}
    tables = RunTables(
        frame((0, 1), N // 2, **columns),
        steering=steering((0, 1), N // 2, success_20=1 - p, **columns),
        null_scores=null_scores((0, 1), 9, output_score=[0.0] * 9 + [5.0] * 9),
    )
    found = answer([Series("a", [], tables)], StudyConfig())
    pairs = found.tables["criteria_agreement"].set_index(["score", "other_score"])
    assert ("1 - output_score_p", "output_score - null") in pairs.index
    less = beside_null(tables).features["output_score - null"].to_numpy(float)
    np.testing.assert_allclose(less, np.where(np.arange(N) < N // 2, score, score - 5))
    guides = found.tables["criteria"].set_index("score")
    assert guides.loc["1 - output_score_p", "spearman"] == pytest.approx(1)
    payoffs = found.tables["criteria_payoff"].set_index(["score", "pooling", "share"])
    assert payoffs.loc[("1 - output_score_p", "within layers", 0.25), "p"] <= 0.05
    text = " ".join(found.sentences)
    assert "Keeping 25% of the features that have a score, within layers" in text
    assert "more success than as many at random has 1 - output_score_p" in text


def test_scores_are_held_against_success_at_equal_kl_and_concept_success() -> None:
    made = series()
    texts = generations(40, (0.0, 1.0, 2.0), ("a", "b"), (0,))
    score_of: Any = made.tables.steering.set_index("feature")["output_score"].to_dict()
    strength = texts["feature"].map(score_of)
    # At factor 2 all have a KL over the budget, at factor 1 the success that the score says.
    texts = texts.assign(
        kl=2.0 * (texts["factor"] == 2) + 0.5 * (texts["factor"] == 1),
        success_20=(1000 * strength * texts["factor"]).round().astype("int64"),
    )
    tables = dataclasses.replace(made.tables, generations=texts, choice=ChoiceConfig())
    steered = tables.steering.assign(concept_success=np.random.default_rng(5).random(N))
    tables = dataclasses.replace(tables, steering=STEERING.frame(steered))
    found = answer([dataclasses.replace(made, tables=tables)], StudyConfig())
    outcomes = found.tables["criteria_outcomes"]
    by = outcomes.loc[outcomes["pooling"] == "pooled"].set_index(["outcome", "score"])
    within = outcomes.loc[outcomes["pooling"] == "within layers"].set_index(["outcome", "score"])
    assert within.loc[("success at a KL of 1", "output_score"), "spearman"] == pytest.approx(1)
    assert by.loc[("success within a KL of 1", "output_score"), "spearman"] == pytest.approx(1)
    assert by.loc[("success within a KL of 1", "output_score"), "features"] == 40
    assert by.loc[("success within a KL of 1", "input_score"), "spearman"] == pytest.approx(-1)
    assert by.loc[("success at a KL of 1", "output_score"), "spearman"] == pytest.approx(1)
    assert by.loc[("success at a KL of 1", "output_score"), "features"] == 40
    assert abs(by.loc[("concept success", "output_score"), "spearman"]) < 0.2
    assert by.loc[("success", "output_score"), "spearman"] > 0.9
    sentences = " ".join(found.sentences)
    assert (
        "Rank correlation with success within a KL of 1, pooled, 4 scores compared at once: "
        in sentences
    )
    assert "output_score 1 (1 to 1)" in sentences
    assert "input_score -1 (-1 to -1)" in sentences
    assert (
        "with concept success, pooled, 4 scores compared at once: none of them surely" in sentences
    )


def test_success_is_what_the_run_s_choice_says() -> None:
    rng = np.random.default_rng(3)
    score, other = rng.random(N), rng.random(N)
    scores = {"output_score": score, "concept_score": other, "input_score": rng.random(N)}
    steered = steering((0, 1), N // 2, success_20=score, concept_success=other, **scores)
    del scores["concept_score"]  # the table of features knows no word
    tables = RunTables(frame((0, 1), N // 2, **scores), steering=steered)
    by_own = answer([Series("a", [], tables)], StudyConfig())
    assert by_own.tables["criteria"]["score"].iloc[0] == "output_score"
    choice = ChoiceConfig(success="concept_success")
    by_word = answer([Series("a", [], dataclasses.replace(tables, choice=choice))], StudyConfig())
    criteria = by_word.tables["criteria"].set_index("score")
    assert criteria.index[0] == "concept_score"
    best = np.sort(other)[-round(0.25 * N) :]
    assert criteria.loc["concept_score", "success_0.25"] == pytest.approx(best.mean())
    payoff = by_word.tables["criteria_payoff"].set_index(["score", "pooling", "share"])
    row = payoff.loc[("concept_score", "pooled", 0.25)]
    assert row["payoff"] == pytest.approx(best.mean() / other.mean())
    assert "have mean concept success" in " ".join(by_word.sentences)
    outcomes = by_word.tables["criteria_outcomes"].set_index(["outcome", "pooling", "score"])
    for pooling in ("pooled", "within layers"):
        of_word = outcomes.loc[("concept success", pooling, "concept_score")]
        assert of_word["spearman"] == pytest.approx(1)
    assert by_word.tables["criteria_combined"]["single"].str.startswith("concept_score").all()


def test_of_one_layer_nothing_is_said_twice() -> None:
    rng = np.random.default_rng(8)
    scores = {"output_score": rng.random(N), "input_score": rng.random(N)}
    steered = steering((0,), N, success_20=rng.random(N), **scores)
    of_layer = answer(
        [Series("a", [], RunTables(frame((0,), N, **scores), steering=steered))], StudyConfig()
    )
    text = " ".join(of_layer.sentences)
    assert "within layers" not in text
    assert "25% of the features that have a score, pooled" in text
    assert {*of_layer.tables["criteria_outcomes"]["pooling"]} == {"pooled", "within layers"}
