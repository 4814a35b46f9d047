"""`Rating: [[n]]`, read from what judges really write."""

from __future__ import annotations

import pytest

from steerlens.judges.parse import parse


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Rating: [[0]]", 0),
        ("It is there.\n\nRating: [[1]]", 1),
        ("It is there.\nrating: [[ 2 ]]\n", 2),
        ("**Rating: [[2]]**", 2),
        ("**Rating:** [[2]].", 2),
        ("Rating:\n[[1]]", 1),
        ("First I thought Rating: [[0]], but no.\nRating: [[2]]", 2),
        ("<think>Rating: [[0]]?</think> Rating: [[1]] as I said", 1),
        ("It reads well.\n\nRating: 2", 2),  # 689 of the authors' 5,000 fluency ratings
        ("It reads well.\n\n**Final rating: 1**", 1),
        ("It reads badly.\n\nRating: [0]", 0),
    ],
)
def test_the_last_rating_counts(answer: str, value: int) -> None:
    assert parse(answer) == (value, "")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "an empty answer"),
        (" \n", "an empty answer"),
        ("I'd give it a two.", "no rating in the answer"),
        ("[[2]]", "no rating in the answer"),
        ("Rating: two", "no rating in the answer"),
        ("Rating: 2 or 1", "no rating in the answer"),
        ("Rating: 2/2", "no rating in the answer"),
        ("Rating: 12", "no rating in the answer"),
        ("Rating: 2 would be too much.\nIt is fine.", "no rating in the answer"),
        ("Rating: [[n]]", "the rating is 'n', not 0, 1 or 2"),
        ("Rating: [[3]]", "the rating is '3', not 0, 1 or 2"),
        ("Rating: [[-1]]", "the rating is '-1', not 0, 1 or 2"),
        ("Rating: [[1.5]]", "the rating is '1.5', not 0, 1 or 2"),
        ("Rating: [[1]] no, Rating: [[x]]", "the rating is 'x', not 0, 1 or 2"),
        ("Rating: [[" + "9" * 99 + "]]", f"the rating is '{'9' * 20}', not 0, 1 or 2"),
        ("Rating: [[٢]]", "the rating is '٢', not 0, 1 or 2"),
    ],
)
def test_what_is_no_rating_is_never_a_number(answer: str, why: str) -> None:
    assert parse(answer) == (None, why)
