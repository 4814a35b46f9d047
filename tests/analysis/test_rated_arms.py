"""Factors and scores of arms from ratings, against plain loops."""

from __future__ import annotations

from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.rated_arms import (
    arm_numbers,
    aspects_of,
    best_factors,
    changed_texts,
    judges_agreement,
    kinds_of,
    over_concepts,
    paired_difference,
)
from steerlens.errors import SteerlensError
from tests.support.ratings import ratings_of


def harmonic(row: Any) -> float:
    pair = [row["lexical_concept"], row["lexical_fluency"]]
    return 0.0 if 0 in pair else 2 / sum(1 / one for one in pair)


def test_the_best_factor_has_the_highest_mean_rating_and_is_the_smallest_such() -> None:
    ratings: Any = ratings_of()
    found: Any = best_factors(ratings).set_index(["method", "rank", "concept_id"])["factor"]
    for key, rows in ratings.groupby(["method", "rank", "concept_id"]):
        means = {
            factor: mean(harmonic(row) for _, row in own.iterrows())
            for factor, own in rows.groupby("factor")
        }
        best = min(f for f, number in means.items() if number == max(means.values()))
        assert found[key] == best


def test_a_tie_goes_to_the_smaller_factor() -> None:
    ratings: Any = ratings_of()
    ratings["lexical_concept"] = ratings["lexical_fluency"] = 1
    smallest = ratings.groupby(["method", "rank", "concept_id"])["factor"].min()
    found: Any = best_factors(ratings).set_index(["method", "rank", "concept_id"])["factor"]
    assert found.to_dict() == smallest.to_dict()


def test_a_changed_text_is_worse_whose_ratings_but_the_concepts_add_up_to_less() -> None:
    rows = [
        # method, factor, prompt, text, concept, instruction, fluency
        ("No steering", 0.0, "a", "same", 0, 2, 2),
        ("No steering", 0.0, "b", "plain", 0, 1, 1),
        ("No steering", 0.0, "c", "plain", 0, 2, 2),
        ("No steering", 0.0, "d", "plain", 0, 2, None),
        ("SAE", 2.0, "a", "same", 2, 0, 0),  # the same text, however it is rated
        ("SAE", 2.0, "b", "other", 2, 2, 0),  # as good
        ("SAE", 2.0, "c", "other", 2, 1, 2),  # worse
        ("SAE", 2.0, "d", "other", 2, 0, 0),  # nothing to compare with
        ("LoRA", 1.0, "a", "same", 2, 2, 2),
    ]
    names = ["method", "factor", "prompt", "text", "llm_concept", "llm_instruction", "llm_fluency"]
    ratings = pd.DataFrame(rows, columns=pd.Index(names))
    ratings = ratings.assign(concept_id=7, sample=0)
    columns = (["method", "concept_id"], ["concept_id", "prompt", "sample"])
    counts: Any = changed_texts(ratings, *columns).set_index("method")
    assert counts.loc["SAE", ["changed", "worse", "side_effect_ratio"]].tolist() == [2, 1, 0.5]
    assert counts.loc["LoRA", ["changed", "worse"]].tolist() == [0, 0]
    assert pd.isna(counts.loc["LoRA", "side_effect_ratio"])
    assert changed_texts(ratings.loc[ratings["factor"] != 0], *columns).empty
    rated_by_concept = ratings.drop(columns=["llm_instruction", "llm_fluency"])
    assert changed_texts(rated_by_concept, *columns).empty


def test_texts_without_a_rating_choose_nothing() -> None:
    ratings: Any = ratings_of()
    where = (ratings["method"] == "DiffMean") & (ratings["concept_id"] == 1)
    ratings.loc[where, "lexical_concept"] = None
    found = best_factors(ratings)
    assert len(found) == ratings.groupby(["method", "rank", "concept_id"]).ngroups - 1
    ratings["lexical_concept"] = ratings["lexical_fluency"] = pd.array(
        [None] * len(ratings), "Int64"
    )
    with pytest.raises(SteerlensError, match="rated no text"):
        best_factors(ratings)


def test_kinds_and_aspects_are_those_that_have_ratings() -> None:
    ratings: Any = ratings_of()
    assert kinds_of(ratings) == ["lexical"]
    assert aspects_of(ratings, "lexical") == ["lexical_concept", "lexical_fluency"]
    assert aspects_of(ratings, "llm") == []
    ratings["llm_fluency"] = 1
    assert kinds_of(ratings) == ["llm", "lexical"]


@pytest.mark.parametrize("aggregation", ["per_text", "of_means"])
def test_numbers_of_arms_are_those_of_a_loop(aggregation: str) -> None:
    ratings: Any = ratings_of(split="evaluating")
    found = arm_numbers(ratings, "lexical", aggregation)
    assert len(found) == ratings.groupby(["method", "rank", "concept_id", "factor"]).ngroups
    for row in found.to_dict("records"):
        own = ratings
        for name in ("method", "rank", "concept_id", "factor"):
            own = own.loc[own[name] == row[name]]
        if aggregation == "per_text":
            expected = mean(harmonic(one) for _, one in own.iterrows())
        else:
            expected = harmonic(own[["lexical_concept", "lexical_fluency"]].astype(float).mean())
        assert row["number"] == pytest.approx(expected, abs=1e-12)


def test_concepts_are_drawn_with_all_their_features() -> None:
    numbers = np.random.default_rng(2).random(30) * 2
    rows = pd.DataFrame({"concept_id": [*[0] * 11, *range(1, 20)], "number": numbers})
    found = over_concepts(rows)
    assert found is not None
    assert found.value == pytest.approx(rows["number"].mean())
    rng, drawn = np.random.default_rng(5), []
    groups = [group["number"].to_numpy() for _, group in rows.groupby("concept_id")]
    for _ in range(4000):
        sample = [groups[place] for place in rng.integers(0, len(groups), len(groups))]
        drawn.append(np.concatenate(sample).mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)
    assert over_concepts(rows.head(0)) is None


def test_a_difference_is_taken_where_both_have_a_number() -> None:
    own = pd.DataFrame({"concept_id": [0, 0, 1, 3], "number": [1.0, 2.0, 0.5, 9.0]})
    other = pd.DataFrame({"concept_id": [0, 1, 2], "number": [1.0, 1.0, 7.0]})
    found, n = paired_difference(own, other)
    assert n == 2
    assert found is not None
    assert found.value == pytest.approx(mean([1.5 - 1.0, 0.5 - 1.0]))
    assert paired_difference(own.head(0), other) == (None, 0)


def test_judges_are_compared_on_the_texts_that_both_have() -> None:
    one: Any = ratings_of()
    other = one.iloc[::-1].iloc[10:]
    llm = other.rename(columns=lambda name: str(name).replace("lexical", "other"))
    llm = llm.drop(columns=[name for name in llm if str(name).startswith("llm")])
    llm = llm.rename(columns=lambda name: str(name).replace("other", "llm"))
    llm.loc[llm.index[:3], "llm_concept"] = 2 - one.loc[llm.index[:3], "lexical_concept"]
    found = judges_agreement(one, llm)
    assert set(found) == {"concept", "fluency"}
    assert found["fluency"].texts == len(one) - 10
    assert found["fluency"].exact is not None
    assert found["fluency"].exact.value == 1
    pairs = zip(one.loc[llm.index, "lexical_concept"], llm["llm_concept"], strict=True)
    assert found["concept"].exact is not None
    assert found["concept"].exact.value == pytest.approx(mean(float(a == b) for a, b in pairs))
    assert judges_agreement(one, llm.assign(text="another")) == {}
