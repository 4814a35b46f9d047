"""Table 1 from ratings, against plain loops; and from the authors' ratings where they are."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import pytest

from steerlens.analysis.resampling import FEWEST
from steerlens.analysis.series import Series
from steerlens.config.compose import compose
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies import Answer
from steerlens.report.studies.table1 import (
    BY_CONFIDENCE,
    LEADERBOARD,
    PUBLISHED,
    UNFILTERED,
    UNSTEERED,
    answer,
)
from steerlens.results import EVALUATING
from steerlens.results.folder import RunTables
from steerlens.runs.preflight import check
from steerlens.runs.run import run
from steerlens.runs.sweep.join import merge
from tests.support.ratings import N_CONCEPTS, rated_tables

RELEASED = Path(__file__).parents[4] / "shared/paper/authors/axbench_llm_scores"
STUDY = StudyConfig("table1")
CELL = "lexical_per_text_layer_4"


@pytest.fixture(scope="module")
def tables() -> RunTables:
    return rated_tables()


def answered(tables: RunTables) -> Answer:
    return answer([Series("all", ["0"], tables)], STUDY)


def rows_of(answer: Answer) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in answer.tables["table1"].to_dict("records")}


@pytest.fixture(scope="module")
def found(tables: RunTables) -> Answer:
    return answered(tables)


@pytest.fixture(scope="module")
def rows(found: Answer) -> dict[str, dict[str, Any]]:
    return rows_of(found)


def naive(tables: RunTables, method: str, keep: Any) -> list[tuple[int, float]]:
    """(concept, number) of the features that are kept."""
    scores: Any = tables.features.set_index("feature")
    texts: Any = tables.ratings.loc[tables.ratings["split"] == EVALUATING]
    numbered = []
    for (rank, concept), rows in texts.loc[texts["method"] == method].groupby(
        ["rank", "concept_id"]
    ):
        if method == "SAE" and not keep(scores.loc[10 * concept + rank]):
            continue
        numbers = []
        for pair in zip(rows["lexical_concept"], rows["lexical_fluency"], strict=True):
            numbers.append(0.0 if 0 in pair else 2 / sum(1 / one for one in pair))
        numbered.append((concept, mean(numbers)))
    return numbered


def test_a_row_for_every_method_and_threshold(rows: dict[str, dict[str, Any]]) -> None:
    filtered = [f"SAE (output_score >= {t})" for t in ("0.0001", "0.001", "0.01", "0.1")]
    assert list(rows) == [UNFILTERED, *filtered, BY_CONFIDENCE, "DiffMean", "Prompt", "Random"]


@pytest.mark.parametrize("threshold", [None, 0.0001, 0.001, 0.01, 0.1])
def test_a_filtered_row_is_the_mean_over_the_features_left(
    tables: RunTables, rows: dict[str, dict[str, Any]], threshold: float | None
) -> None:
    name = UNFILTERED if threshold is None else f"SAE (output_score >= {threshold:g})"
    row = rows[name]
    least = -1.0 if threshold is None else threshold
    expected = naive(tables, "SAE", lambda score: score["output_score"] >= least)
    assert row[CELL] == pytest.approx(mean(number for _, number in expected))
    n_concepts = len({concept for concept, _ in expected})
    assert row[f"{CELL}_concepts"] == n_concepts
    assert row["texts_layer_4"] == 4 * len(expected)
    low, high = row[f"{CELL}_low"], row[f"{CELL}_high"]
    if n_concepts < FEWEST:
        assert pd.isna(low)
        assert pd.isna(high)
    else:
        assert low <= row[CELL] <= high


def test_by_confidence_as_many_are_left(tables: RunTables, rows: dict[str, dict[str, Any]]) -> None:
    n = len(naive(tables, "SAE", lambda score: score["output_score"] >= 0.01))
    least = sorted(tables.features["token_confidence_delta"].tolist())[-n]
    expected = naive(tables, "SAE", lambda score: score["token_confidence_delta"] >= least)
    assert rows[BY_CONFIDENCE][CELL] == pytest.approx(mean(x for _, x in expected))


def test_other_rows_detection_and_what_was_published(
    tables: RunTables, rows: dict[str, dict[str, Any]]
) -> None:
    expected = naive(tables, "DiffMean", None)
    assert rows["DiffMean"][CELL] == pytest.approx(mean(number for _, number in expected))
    assert rows["DiffMean"]["auroc_layer_4"] == pytest.approx(0.5 + 0.05 * (N_CONCEPTS - 1) / 2)
    assert pd.isna(rows["Prompt"]["auroc_layer_4"])
    assert rows["DiffMean"]["train_texts"] == 40 + (N_CONCEPTS - 1) / 2
    assert pd.isna(rows["Random"]["train_texts"])
    assert pd.isna(rows["DiffMean"]["epochs"])
    assert rows["DiffMean"]["train_rows"] == 4 * rows["DiffMean"]["train_texts"]
    assert pd.isna(rows["DiffMean"]["vectors_measured"])
    assert (rows["DiffMean"]["published_layer_20"], rows["DiffMean"]["published_layer_31"]) == (
        PUBLISHED["DiffMean"]
    )
    assert pd.isna(rows["Random"]["published_layer_20"])


def test_differences_are_paired_by_concept(tables: RunTables, found: Answer) -> None:
    table = found.tables["table1_differences"]
    (row,) = table.loc[
        (table["method"] == "SAE (output_score >= 0.01)")
        & (table["baseline"] == "DiffMean")
        & (table["aggregation"] == "per_text")
    ].to_dict("records")
    other = dict(naive(tables, "DiffMean", None))
    own: dict[int, list[float]] = {}
    for concept, number in naive(tables, "SAE", lambda score: score["output_score"] >= 0.01):
        own.setdefault(concept, []).append(number)
    assert row["concepts"] == len(own)
    expected = mean(mean(numbers) - other[concept] for concept, numbers in own.items())
    assert row["difference"] == pytest.approx(expected)
    assert row["concepts"] < FEWEST
    text = " ".join(found.sentences)
    assert "SAE (output_score >= 0.01) less DiffMean" not in text
    assert f"they share fewer than {FEWEST} concepts with them: SAE (output_score >= 0.01)" in text
    (unfiltered,) = table.loc[
        (table["method"] == UNFILTERED)
        & (table["baseline"] == "DiffMean")
        & (table["aggregation"] == "per_text")
    ].to_dict("records")
    assert f"{UNFILTERED} less DiffMean is {unfiltered['difference']:+.3f} (" in text


def test_every_method_is_compared_with_no_steering(tables: RunTables) -> None:
    """Here without variance: unsteered texts have 1 each, DiffMean's 2, SAE's and Random's 0."""
    ratings, numbers = tables.ratings, {"DiffMean": 2, "SAE": 0, "Random": 0, "Prompt": 1}
    unsteered = ratings.loc[ratings["method"] == "Random"].assign(method=UNSTEERED)
    ratings = pd.concat([ratings, unsteered], ignore_index=True)
    of_method = {**numbers, UNSTEERED: 1}
    rating = pd.array([of_method[method] for method in ratings["method"]], dtype="Int64")
    ratings = ratings.assign(lexical_concept=rating, lexical_fluency=rating)
    concepts = tables.concepts
    of_random = concepts.loc[concepts["method"] == "Random"].assign(method=UNSTEERED)
    concepts = pd.concat([concepts, of_random], ignore_index=True)
    answer = answered(
        RunTables(**{**vars(tables), "ratings": ratings, "concepts": concepts}),
    )
    table = answer.tables["table1_differences"]
    rows = table.loc[(table["baseline"] == UNSTEERED) & (table["aggregation"] == "per_text")]
    rows = rows.set_index("method")
    for method, number in numbers.items():
        name = UNFILTERED if method == "SAE" else method
        assert rows.loc[name, "concepts"] == N_CONCEPTS
        for column in ("difference", "difference_low", "difference_high"):
            assert rows.loc[name, column] == number - 1
    assert UNSTEERED not in rows.index
    (sentence,) = (line for line in answer.sentences if "not corrected" in line)
    assert "DiffMean above no steering and SAE (no filter)" in sentence
    assert "Random below no steering" in sentence
    assert "Prompt" not in sentence
    equal = ratings.assign(lexical_concept=1, lexical_fluency=1)
    same = RunTables(**{**vars(tables), "ratings": equal, "concepts": concepts})
    assert "none is told apart from no steering." in " ".join(answered(same).sentences)


def test_the_two_aggregations_and_the_two_kinds_never_share_a_column(tables: RunTables) -> None:
    both = tables.ratings.assign(llm_concept=1, llm_instruction=2, llm_fluency=1)
    columns = answered(RunTables(**{**vars(tables), "ratings": both})).tables["table1"].columns
    for kind in ("llm", "lexical"):
        for aggregation in ("per_text", "of_means"):
            assert f"{kind}_{aggregation}_layer_4" in columns


def test_jobs_of_two_layers_are_one_table(
    tables: RunTables, rows: dict[str, dict[str, Any]]
) -> None:
    other = {
        name: getattr(rated_tables(seed=5), name).assign(layer=2)
        for name in ("features", "concepts", "ratings")
    }
    merged = merge([tables, RunTables(**other)])
    both = rows_of(answered(merged))["DiffMean"]
    alone = rows_of(answered(RunTables(**other)))["DiffMean"]
    assert both[CELL] == rows["DiffMean"][CELL]
    assert both["lexical_per_text_layer_2"] == alone["lexical_per_text_layer_2"]


def test_missing_ratings_are_counted_with_their_reason(tables: RunTables) -> None:
    ratings = tables.ratings.copy()
    ratings.loc[:2, "lexical_concept"] = None
    ratings.loc[:1, "lexical_concept_missing"] = "budget"
    ratings.loc[2, "lexical_concept_missing"] = "unparsable"
    said = answered(RunTables(**{**vars(tables), "ratings": ratings})).sentences
    assert any(
        f"3 of {len(ratings)} ratings of concept are missing (2 budget, 1 unparsable)" in line
        for line in said
    )


def test_the_figures_name_axbenchs_leaderboard_its_models_and_judges() -> None:
    assert LEADERBOARD.rating_of["RePS"] == 0.72
    assert all(0 < rating <= 2 for rating in LEADERBOARD.rating_of.values())
    assert "Gemma-2 2B and 9B" in LEADERBOARD.note
    assert "gpt-4o-mini" in LEADERBOARD.note


def test_without_ratings_there_is_no_table(tables: RunTables) -> None:
    with pytest.raises(SteerlensError, match="no text was rated"):
        answered(RunTables(tables.features))


def test_published_ratings_give_the_rows_that_they_can(
    tmp_path: Path, undrawn_figures: None
) -> None:
    folder = tmp_path / "ratings"
    folder.mkdir()
    words = {"concept": [2, 0, 1], "instruct": [2, 2, None], "fluency": [1, 2, 2]}
    for word, scores in words.items():
        given = [one for one in scores if one is not None]
        entry = {
            "scores": scores,
            "mean_score": mean(given),
            "best_steering_factor": 2.0,
            "responses": [f"Rating: [[{one}]]" for one in scores],
        }
        file = folder / f"gemma2_9b_it_131_llm_{word}_score_cache.json"
        file.write_text(json.dumps({"20_7": entry, "31_9": entry}))
    row = published(folder, tmp_path)[UNFILTERED]
    of_means = 3 / (1 / 1 + 1 / 2 + 3 / 5)
    assert row["llm_of_means_layer_20"] == pytest.approx(of_means)
    per_text = mean([3 / (1 / 2 + 1 / 2 + 1 / 1), 0.0])  # the third lacks a rating
    assert row["llm_per_text_layer_31"] == pytest.approx(per_text)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "2 of 6 ratings of instruction are missing" in report


def published(folder: Path, root: Path) -> dict[str, dict[str, Any]]:
    config = compose(
        [
            "experiment=paper/table1_published",
            f"reference.ratings={folder}",
            "tracking.mode=disabled",
            f"paths.output_dir={root / 'out'}",
            f"paths.cache_dir={root / 'cache'}",
        ]
    )
    check(config)
    run(config)
    table = pd.read_csv(root / "out" / "table1.csv")
    return {row["method"]: row for row in table.to_dict("records")}


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the authors' ratings are not here")
def test_the_authors_ratings(tmp_path: Path, undrawn_figures: None) -> None:
    rows = published(RELEASED, tmp_path)
    assert list(rows) == [f"{UNFILTERED}, only instruction and fluency"]
    (row,) = rows.values()
    for layer, ratio in ((20, 1.073), (31, 1.127)):
        of_means, per_text = (row[f"llm_{a}_layer_{layer}"] for a in ("of_means", "per_text"))
        assert of_means / per_text == pytest.approx(ratio, abs=1e-3)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "ratings of fluency are missing" in report
