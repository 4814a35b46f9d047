"""What a run says about both scores: hybrids, robustness, features that never fire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.ranking import best_features, ranking
from steerlens.analysis.summary import explanation, hybrids, prompt_correlations, summarise
from steerlens.results.folder import RunTables
from tests.support.frames import frame, null_scores


def scored(high_in: list[bool], high_out: list[bool]) -> dict[str, list[float]]:
    return {
        "input_score": [0.1 if high else 0.05 for high in high_in],
        "output_score": [0.4 if high else 0.09 for high in high_out],
    }


def test_hybrids_are_counted_beside_what_independence_gives() -> None:
    # 10 features: 4 high in, 5 high out, 3 both.
    columns = scored([True] * 4 + [False] * 6, [True] * 3 + [False] * 5 + [True] * 2)
    found = hybrids(frame([0], 10, **columns))
    assert found is not None
    assert found["features"] == 10
    assert found["hybrid_share"] == pytest.approx(0.3)
    assert found["hybrid_share_if_independent"] == pytest.approx(0.2)
    assert found["ratio"] == pytest.approx(1.5)
    low, high = found["ratio_interval"]
    assert low < 1.5 < high


def test_the_interval_covers_what_the_bootstrap_by_features_covers() -> None:
    draw = np.random.default_rng(1)
    n = 400
    high_in, high_out = draw.random(n) < 0.4, draw.random(n) < 0.3
    columns = scored(high_in.tolist(), high_out.tolist())
    found = hybrids(frame([0], n, **columns))
    assert found is not None
    ratios = []
    for _ in range(4000):
        pick = draw.integers(0, n, n)
        a, b = high_in[pick], high_out[pick]
        ratios.append((a & b).mean() / (a.mean() * b.mean()))
    expected = np.quantile(ratios, [0.025, 0.975])
    assert found["ratio_interval"] == pytest.approx(expected, rel=0.03)


def test_features_without_one_of_the_scores_do_not_count() -> None:
    columns = scored([True] * 4, [True] * 4)
    columns["input_score"][0] = None  # type: ignore[call-overload]
    found = hybrids(frame([0], 4, **columns))
    assert found is not None
    assert found["features"] == 3
    assert hybrids(frame([0], 4, input_score=[None] * 4)) is None


def test_no_high_score_at_all_gives_no_ratio() -> None:
    found = hybrids(frame([0], 4, **scored([False] * 4, [False] * 4)))
    assert found is not None
    assert found["ratio"] is None
    assert found["ratio_interval"] is None


def test_prompts_are_correlated_with_their_mean() -> None:
    scores = np.random.default_rng(0).random((12, 5))
    found = prompt_correlations(frame([0], 12, output_score_by_prompt=list(scores)))
    expected = [np.corrcoef(column, scores.mean(axis=1))[0, 1] for column in scores.T]
    assert found == pytest.approx(expected)
    assert prompt_correlations(frame([0], 12)) is None
    lines = explanation(summarise(RunTables(frame([0], 12, output_score_by_prompt=list(scores)))))
    assert any("Under 5 prompts S_out correlates" in line for line in lines)


def test_features_that_never_fire_are_counted() -> None:
    table = frame(range(2), 3, input_examples=[0, 5, 0, 7, None, 0])
    summary = summarise(RunTables(table))
    assert summary["overall"]["never_fires"] == 3
    assert [layer["never_fires"] for layer in summary["layers"]] == [2, 1]


def test_features_are_ranked_by_the_best_guide_that_the_table_has() -> None:
    nothing = {"output_score": [None] * 3, "input_score": [None] * 3}
    assert ranking(frame([0], 3)) == "output_score"
    assert ranking(frame([0], 3, output_score=[None] * 3)) == "input_score"
    assert ranking(frame([0], 3, **nothing)) is None
    assert ranking(frame([0], 3, **nothing, note=["a"] * 3, mine=[1, None, 2])) == "mine"
    table = frame([0], 3, **nothing, token_confidence_delta=[-1.0, 2.0, None])
    found = summarise(RunTables(table))
    assert found["ranked_by"] == "token_confidence_delta"
    best = [(row["feature"], row["token_confidence_delta"]) for row in found["best_features"]]
    assert best == [(1, 2.0), (0, -1.0)]


def test_a_table_of_input_scores_is_explained_without_output_scores() -> None:
    lines = explanation(summarise(RunTables(frame([0], 4, output_score=[None] * 4))))
    assert not any("S_out" in line for line in lines)
    assert "Of 4 features" in " ".join(lines)


def test_random_directions_are_told_for_every_layer() -> None:
    null = null_scores(range(3))
    summary = summarise(RunTables(frame(range(3)), null_scores=null))
    for layer in summary["layers"]:
        scores = null.loc[null["layer"] == layer["layer"], "output_score"].to_numpy(float)
        assert layer["output_score_null_count"] == 99
        assert layer["output_score_null_at_least_0.01"] == pytest.approx((scores >= 0.01).mean())
        assert layer["output_score_null_at_least_0.1"] == pytest.approx((scores >= 0.1).mean())
        expected = np.quantile(scores, [0.25, 0.5, 0.75], method="inverted_cdf")
        found = [layer[f"output_score_null_{key}"] for key in ("q25", "median", "q75")]
        assert found == pytest.approx(expected)
    assert summary["overall"]["output_score_null_count"] == 3 * 99


def test_random_directions_of_a_layer_count_as_its_features_do() -> None:
    # 30 features of layer 0 and 10 of layer 1; all directions of layer 1 are high, none of layer 0.
    table = pd.concat([frame([0], 30), frame([1], 10)], ignore_index=True)
    null = null_scores([0, 1, 2], 99).assign(output_score=[0.0] * 99 + [0.5] * 99 + [0.9] * 99)
    overall = summarise(RunTables(table, null_scores=null))["overall"]
    assert overall["output_score_null_at_least_0.1"] == pytest.approx(10 / 40)
    assert overall["output_score_null_median"] == 0.0
    assert overall["output_score_null_q75"] in (0.0, 0.5)
    assert overall["output_score_null_count"] == 2 * 99  # layer 2 has no features


def test_features_are_told_apart_from_random_directions() -> None:
    table = frame([0], 4, output_score_p=[0.01, 0.05, 0.051, 1.0])
    summary = summarise(RunTables(table, null_scores=null_scores([0], 99, output_score=0.02)))
    assert summary["overall"]["output_score_p_at_most_0.05"] == 0.5
    text = " ".join(explanation(summary))
    assert "Of 99 random directions with the norms of decoder rows 100.0% have S_out" in text
    assert "50.0% of the features have an S_out that at most 5% of random directions" in text
    # 0.01 * 4 / 1, 0.05 * 4 / 2, 0.051 * 4 / 3: only the first is at most 0.05.
    assert summary["overall"]["output_score_q_at_most_0.05"] == 0.25
    assert "corrected for the number of features in their layer, 25.0% are above chance" in text
    few = summarise(RunTables(table, null_scores=null_scores([0], 18)))
    assert few["overall"]["output_score_p_at_most_0.05"] is None  # 1 / 19 is more than that
    assert "random directions" in " ".join(explanation(few))
    assert "output_score_p" not in " ".join(explanation(few))


def test_p_values_are_corrected_layer_by_layer() -> None:
    # Alone 0.04 is a discovery; beside three others of its layer it isn't.
    table = pd.concat([frame([0], 1, output_score_p=0.04), frame([1], 4, output_score_p=0.04)])
    table.loc[(table["layer"] == 1) & (table["feature"] > 0), "output_score_p"] = 0.9
    summary = summarise(RunTables(table, null_scores=null_scores([0, 1], 99)))
    shares = [layer["output_score_q_at_most_0.05"] for layer in summary["layers"]]
    assert shares == [1.0, 0.0]
    assert summary["overall"]["output_score_q_at_most_0.05"] == 0.2


def test_a_run_without_random_directions_says_nothing_of_them() -> None:
    summary = summarise(RunTables(frame()))
    for statistics in (summary["overall"], *summary["layers"]):
        assert statistics["output_score_null_count"] == 0
        assert statistics["output_score_null_median"] is None
        assert statistics["output_score_null_at_least_0.1"] is None
        assert statistics["output_score_p_at_most_0.05"] is None
    assert not any("random directions" in line for line in explanation(summary))


def tied(**columns: Any) -> pd.DataFrame:
    tokens = [" the", " Rain", ".", " rain", " snow", "ing", " hail", " wind"]
    filled = {
        "output_score": [1.0, 0.999, 0.9999, 0.9961, 0.998, 1.0, 0.5, 0.75],
        "output_score_delta": [0.4, 0.9, 0.99, 0.95, 0.93, 1.0, 0.5, 0.75],
        "output_token": tokens,
    }
    return frame([3], 8, **(filled | columns))


def test_of_equal_scores_different_words_stand_first_and_of_these_what_steering_adds_most() -> None:
    # " rain" is before " Rain" by its delta, which is then no new word; pieces come after words.
    best = best_features(tied(), 8)
    assert best["output_token"].tolist() == [
        " rain", " snow", "ing", ".", " Rain", " the", " wind", " hail"
    ]  # fmt: skip
    assert set(best.columns) == set(tied().columns)


def test_how_many_share_the_highest_score_is_said() -> None:
    summary = summarise(RunTables(tied()))
    assert summary["top_score"] == {"score": 1.0, "features": 6}
    assert explanation(summary)[0].startswith("6 features share the highest S_out, 1.00; ")
    alone = summarise(RunTables(tied(output_score=[0.9] + [0.1] * 7)))
    assert alone["top_score"] == {"score": 0.9, "features": 1}
    assert "share" not in explanation(alone)[0]
    low = summarise(RunTables(tied(output_score=[0.004] * 8)))
    assert "share" not in explanation(low)[0]  # all are as good as 0
    other = summarise(RunTables(tied(concept_score=[0.5] * 8)))
    assert other["top_score"] is None


def test_words_without_spaces_are_words_where_no_token_has_one() -> None:
    tokens = ["the", "rain", ".", "rain", "snow", "", "hail", "wind"]
    best = best_features(tied(output_token=tokens), 3)
    assert best["output_token"].tolist() == ["rain", "snow", ""]
