"""The authors' published ratings: read, malformed, and aggregated where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens.analysis.ratings import OF_MEANS, PER_TEXT, numbers
from steerlens.errors import SteerlensError
from steerlens.judges.items import CONCEPT, FLUENCY, INSTRUCTION
from steerlens.judges.published import NAMES, read_published

AUTHORS = Path(__file__).parents[3] / "shared" / "paper" / "authors"

SCORES: dict[str, dict[str, list[int | None]]] = {
    CONCEPT: {"20_7": [2, 1], "31_3": [0, 2]},
    INSTRUCTION: {"20_7": [2, 2], "31_3": [1, 2]},
    FLUENCY: {"20_7": [1, None], "31_3": [2, 2]},
}


def entry(scores: list[int | None], **changed: Any) -> dict[str, Any]:
    given = [one for one in scores if one is not None]
    return {
        "scores": scores,
        "mean_score": sum(given) / len(given),
        "best_steering_factor": 0.4,
        "responses": ["So.\n\nRating: [[" + ("?" if s is None else str(s)) + "]]" for s in scores],
        **changed,
    }


def save(folder: Path, aspect: str, content: Any, run: str = "gemma2_9b_it_131") -> None:
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / f"{run}_llm_{NAMES[aspect]}_score_cache.json").write_text(text)


def entries(aspect: str) -> dict[str, Any]:
    return {key: entry(scores) for key, scores in SCORES[aspect].items()}


def test_files_become_one_row_a_text_and_nulls_are_told(tmp_path: Path) -> None:
    for aspect in SCORES:
        save(tmp_path / aspect, aspect, entries(aspect))
    found = read_published(tmp_path)
    assert (found.aspects, found.absent) == ((CONCEPT, INSTRUCTION, FLUENCY), ())
    assert found.table.fillna({FLUENCY: -1}).to_dict("list") == {
        "layer": [20, 20, 31, 31],
        "feature": [7, 7, 3, 3],
        "text": [0, 1, 0, 1],
        "factor": [0.4] * 4,
        CONCEPT: [2, 1, 0, 2],
        INSTRUCTION: [2, 2, 1, 2],
        FLUENCY: [1, -1, 2, 2],
    }
    assert sum(found.table[FLUENCY].isna().tolist()) == 1
    assert found.findings == ["gemma2_9b_it_131_llm_fluency_score_cache.json: 1 ratings are null."]
    of_feature: Any = numbers(found.table, found.aspects, ["layer", "feature"], OF_MEANS)["number"]
    hand = [3 / (1 / 1.5 + 1 / 2 + 1 / 1), 3 / (1 / 1 + 1 / 1.5 + 1 / 2)]
    assert of_feature.mean() == pytest.approx(sum(hand) / 2)


def test_an_absent_file_is_told_and_no_column_is_made_up(tmp_path: Path) -> None:
    save(tmp_path, FLUENCY, entries(FLUENCY))
    found = read_published(tmp_path)
    assert (found.aspects, found.absent) == ((FLUENCY,), (CONCEPT, INSTRUCTION))
    assert list(found.table) == ["layer", "feature", "text", "factor", FLUENCY]
    assert "There is no file of the ratings of concept." in found.findings


def test_what_contradicts_itself_is_told(tmp_path: Path) -> None:
    wrong = entries(FLUENCY)
    wrong["31_3"] = entry([2, 2], mean_score=1.0, responses=["Rating: [[2]]", "Rating: [[0]]"])
    save(tmp_path, FLUENCY, wrong)
    instruct = entries(INSTRUCTION)
    instruct["20_7"] = entry([2, 2], best_steering_factor=8.0)
    instruct["31_4"] = entry([1])
    save(tmp_path, INSTRUCTION, instruct)
    found = read_published(tmp_path)
    name = "gemma2_9b_it_131_llm_fluency_score_cache.json"
    assert set(found.findings) == {
        f"{name}: 1 ratings are null.",
        f"{name}: 1 means aren't those of the ratings.",
        f"{name}: 1 ratings aren't what their response says.",
        "1 texts are not in all files: an aspect of theirs is missing.",
        "2 texts have another factor in the file of fluency.",
        "There is no file of the ratings of concept.",
    }
    assert found.table[FLUENCY].tolist()[2:4] == [2, 2]
    assert pd.isna(found.table[FLUENCY].tolist()[4])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON file that can be read"),
        ("[]", "holds no ratings"),
        ("{}", "holds no ratings"),
        ('{"20_7": {"scores": [1]}, "20_7": {"scores": [1]}}', "a key is there twice"),
        ({"20-7": entry([1])}, "'20-7' isn't layer_feature"),
        ({"20_7": [1]}, "isn't layer_feature with a list of scores"),
        ({"20_7": {"mean_score": 1}}, "isn't layer_feature with a list of scores"),
        ({"20_7": entry([3])}, "3 is no rating of 0, 1 or 2"),
        ({"20_7": {"scores": [True]}}, "True is no rating"),
        ({"20_7": {"scores": ["2"]}}, "'2' is no rating"),
        ({"20_7": {"scores": [[2]]}}, "is no rating"),
    ],
)
def test_malformed_files_are_one_sentence(content: Any, told: str, tmp_path: Path) -> None:
    save(tmp_path, FLUENCY, content)
    with pytest.raises(SteerlensError, match="score_cache") as caught:
        read_published(tmp_path)
    assert told in str(caught.value)


def test_no_file_two_files_and_files_of_other_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match="there are no ratings of gemma2_9b_it_131"):
        read_published(tmp_path)
    save(tmp_path, FLUENCY, entries(FLUENCY))
    save(tmp_path, INSTRUCTION, {"1_1": entry([2])})
    with pytest.raises(SteerlensError, match="are of other features"):
        read_published(tmp_path)
    save(tmp_path / "again", FLUENCY, entries(FLUENCY))
    with pytest.raises(SteerlensError, match="have the same name"):
        read_published(tmp_path)


@pytest.mark.skipif(not AUTHORS.is_dir(), reason="the authors' data is not here")
def test_the_published_files_say_what_the_paper_says() -> None:
    found = read_published(AUTHORS)
    assert len(found.table) == 5000
    assert "gemma2_9b_it_131_llm_fluency_score_cache.json: 2 ratings are null." in found.findings
    assert sum(found.table[FLUENCY].isna().tolist()) == 2
    assert {INSTRUCTION, FLUENCY} <= set(found.aspects)
    # The harmonic mean of the means is larger than the mean of the harmonic means: 7 % and 13 %.
    for layer, more in ((20, 0.07), (31, 0.13)):
        table = found.table.query(f"layer == {layer}")
        pair = (INSTRUCTION, FLUENCY)
        averages: list[Any] = [
            numbers(table, pair, ["layer", "feature"], one)["number"].mean()
            for one in (OF_MEANS, PER_TEXT)
        ]
        means, texts = averages
        assert means / texts - 1 == pytest.approx(more, abs=0.005)
    if found.absent:
        assert found.absent == (CONCEPT,)
        return
    # With all three files, Table 1's row without a filter.
    for layer, published in ((20, 0.293), (31, 0.387)):
        table = found.table.query(f"layer == {layer}")
        of_feature: Any = numbers(table, found.aspects, ["layer", "feature"], OF_MEANS)["number"]
        assert of_feature.mean() == pytest.approx(published, abs=5e-4)
