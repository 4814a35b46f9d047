"""What a client of `steerlens play` may ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steerlens.errors import SteerlensError
from steerlens.report.play.requests import Writing, parse_body, parse_writing
from tests.report.play.served import ASKED


def test_factors_are_in_order_each_once_and_without_0() -> None:
    writing = parse_writing(ASKED | {"factors": [4, 0, 0.5, 4, -1]})
    assert writing == Writing(
        layer=1,
        features=(3,),
        weights=(1.0,),
        factors=(-1.0, 0.5, 4.0),
        prompt="Note that",
        chat_template=False,
        operator="add",
        positions="last",
        max_new_tokens=5,
        temperature=0.7,
        seed=0,
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"a": NaN}', b"[" * 20_000, b'"text"', b"[1]", b"null"]
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(SteerlensError, match="the request is no JSON"):
        parse_body(body)


def test_an_object_is_read_as_it_is() -> None:
    assert parse_body(json.dumps(ASKED).encode()) == ASKED


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"layr": 1}, "'layr'; did you mean 'layer'"),
        ({"layer": True}, "layer must be an integer"),
        ({"layer": -1}, "layer must be an integer"),
        ({"features": []}, "features must be a list of 1 to 8"),
        ({"features": list(range(9))}, "features must be a list of 1 to 8"),
        ({"features": ["3"]}, "features must be an integer"),
        ({"features": [3, 3], "weights": [1, 1]}, "features names one twice"),
        ({"features": 3}, "features must be a list"),
        ({"weights": [1, 2]}, "weights has 2 numbers for 1 features"),
        ({"weights": [1e9]}, "weights must be a number from -1000 to 1000"),
        ({"factors": [1.0] * 17}, "factors must be a list of 0 to 16"),
        ({"factors": [float("inf")]}, "factors must be a number"),
        ({"factors": [None]}, "factors must be a number"),
        ({"prompt": " "}, "prompt must be a text, and not empty"),
        ({"prompt": "x" * 4001}, "prompt has 4,001 characters; at most 4,000"),
        ({"prompt": "\ud800"}, "half of a character"),
        ({"chat_template": 1}, "chat_template must be true or false"),
        ({"operator": None}, "operator must be a text"),
        ({"max_new_tokens": 201}, "max_new_tokens must be an integer from 1 to 200"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer from 1"),
        ({"temperature": -0.1}, "temperature must be a number from 0 to 5"),
        ({"seed": 2**40}, "seed must be an integer"),
    ],
)
def test_what_has_no_meaning_or_is_too_much_is_refused(
    changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        parse_writing(ASKED | changed)


def test_every_key_has_to_be_there() -> None:
    for key in ASKED:
        with pytest.raises(SteerlensError, match=f"the request has no {key}"):
            parse_writing({name: value for name, value in ASKED.items() if name != key})
