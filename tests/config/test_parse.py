"""Values with several spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerlens.config.parse import (
    parse_feature_file,
    parse_ids,
    parse_layers,
    parse_memory,
    parse_scores,
    parse_words,
)
from steerlens.errors import SteerlensError
from steerlens.scores import output


@pytest.mark.parametrize(
    ("spec", "late_from", "expected"),
    [
        (3, None, [3]),
        ("3", None, [3]),
        ([5, 2], None, [2, 5]),
        ("all", None, list(range(10))),
        ("late", None, [6, 7, 8, 9]),
        ("late", 8, [8, 9]),
        ("late", 0, list(range(10))),
    ],
)
def test_layers_come_in_rising_order(spec: Any, late_from: int | None, expected: list[int]) -> None:
    assert parse_layers(spec, 10, late_from) == expected


def test_late_begins_at_sixty_percent_rounded() -> None:
    assert parse_layers("late", 26)[0] == 16
    assert parse_layers("late", 6)[0] == 4


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (10, "the model has layers 0 to 9"),
        (-1, "layer -1 is not a layer"),
        (2.0, "layer 2.0 is not a layer"),
        (True, "layer True is not a layer"),
        (None, "layer None is not a layer"),
        ([1, "a"], "layer 'a' is not a layer"),
        ([], "names no layer"),
        ([3, 3], "3 is there twice"),
        ("last", "layer=last is unknown"),
    ],
)
def test_a_wrong_layer_is_told(spec: Any, expected: str) -> None:
    with pytest.raises(SteerlensError, match=expected):
        parse_layers(spec, 10)


def test_late_from_must_be_a_layer() -> None:
    with pytest.raises(
        SteerlensError, match=r"model\.late_from=12 is not one of the layers 0 to 9"
    ):
        parse_layers("late", 10, 12)


@pytest.mark.parametrize("value", [[4, 1], (4, 1), np.array([4, 1]), range(4, 0, -3)])
def test_ids_keep_their_order_and_become_plain_integers(value: Any) -> None:
    ids = parse_ids(value, 5)
    assert ids == [4, 1]
    assert {type(number) for number in ids} == {int}


def test_one_id_needs_no_brackets() -> None:
    assert parse_ids(3) == [3]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([5], "there is no feature 5; the SAE's features are 0 to 4"),
        ([-1], "there is no feature -1"),
        ([1.0], "1.0 is not an integer"),
        ([True], "True is not an integer"),
        (["1"], "'1' is not an integer"),
        ([[1]], r"\[1\] is not an integer"),
        ([2, 2], "2 is there twice"),
        ([], "is empty"),
        ("1,2", "must be a list of integers"),
        (1.5, "must be a list of integers"),
        ({"a": 1}, "must be a list of integers"),
    ],
)
def test_wrong_ids_are_told(value: Any, expected: str) -> None:
    with pytest.raises(SteerlensError, match=expected):
        parse_ids(value, 5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2GiB", 2 * 2**30),
        ("512MB", 512 * 10**6),
        ("1.5 gib", 3 * 2**29),
        (2**21, 2**21),
        ("2000 kib", 2000 * 1024),
    ],
)
def test_memory_is_bytes_or_a_number_with_a_unit(value: Any, expected: int) -> None:
    assert parse_memory(value) == expected


@pytest.mark.parametrize("value", ["2", "much", 2, 0, -1, True, None, 1.5, "1KB", "-2GiB", "2Gi"])
def test_no_amount_of_memory_is_told(value: Any) -> None:
    with pytest.raises(SteerlensError, match="2GiB, say"):
        parse_memory(value)


def test_a_feature_file_gives_ids_by_layer(tmp_path: Path) -> None:
    file = tmp_path / "features.json"
    file.write_text(json.dumps({"12": [1, 0], "3": [7]}))
    assert parse_feature_file(file) == {3: [7], 12: [1, 0]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not valid JSON"),
        ("[1, 2]", "has another form"),
        ("{}", "has another form"),
        ('{"a": [1]}', "'a' is not a layer"),
        ('{"-1": [1]}', "'-1' is not a layer"),
        ('{"03": [1]}', "'03' is not a layer"),
        ('{"3": 1}', "layer 3 has no list of ids"),
        ('{"3": []}', "layer 3 is empty"),
        ('{"3": [1.5]}', "layer 3: 1.5 is not an integer"),
        ('{"3": [true]}', "layer 3: True is not an integer"),
        ('{"3": [1, 1]}', "layer 3: 1 is there twice"),
        ('{"3": [99]}', "layer 3: there is no feature 99"),
        ('{"3": [1], "3": [2]}', "3 is there twice"),
        (b"\xff\xff", "not a text file"),
    ],
)
def test_a_malformed_feature_file_is_told(tmp_path: Path, text: str | bytes, expected: str) -> None:
    file = tmp_path / "features.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SteerlensError, match=expected) as caught:
        parse_feature_file(file, d_sae=50)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_feature_file_and_words_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "features.json").write_bytes('{"3": [7]}'.encode(encoding))
    assert parse_feature_file(tmp_path / "features.json") == {3: [7]}
    (tmp_path / "words.txt").write_bytes("naïve\r\ndate\r\n".encode(encoding))
    assert parse_words(str(tmp_path / "words.txt")) == ["naïve", "date"]


def test_a_missing_feature_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match="can't be read"):
        parse_feature_file(tmp_path / "none.json")


def test_scores_are_settings_by_method() -> None:
    alone = output.Config(factor=3)
    assert parse_scores(alone) == {"output": alone}
    assert parse_scores({"output": alone}) == {"output": alone}
    assert parse_scores({"method": "output", "factor": 3}) == {"output": alone}
    assert parse_scores({"first": {"method": "output", "factor": 3}}) == {"first": alone}


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("???", "score names no method"),
        ({}, "score names no method"),
        ({"method": "outptu"}, "unknown scoring method 'outptu'; did you mean 'output'"),
        ({"method": "output", "factr": 1}, "did you mean 'factor'"),
        ({"output": output.Config(), "outptu": {"factor": 1}}, "did you mean 'output'"),
    ],
)
def test_wrong_scores_are_told(score: Any, expected: str) -> None:
    with pytest.raises(SteerlensError, match=expected):
        parse_scores(score)
