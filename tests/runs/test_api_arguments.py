"""Whatever the Python interface is called with: it works, or is refused in a sentence."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
import torch

import steerlens
from steerlens import SteerlensError
from steerlens.engine.subject import Subject
from tests.support.frames import frame
from tests.support.sweeps import save_run

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: value for name in dir(steerlens) if inspect.isfunction(value := getattr(steerlens, name))
}
METHODS = ("feature", "figures")
"""Of a loaded run."""

VALUES: list[Any] = [
    None, "", "x", b"x", [], {}, -1, 1.5, math.nan, object(), [None], [""], {"a": 1}, "a=[",
    torch.tensor([1, 1]),
]  # fmt: skip
TYPES: dict[str, Any] = {
    "None": NoneType, "bool": bool, "float": Real, "int": Integral, "str": str, "Path": Path,
    "Iterable": Iterable, "Sequence": Iterable, "Mapping": Mapping, "torch.Tensor": torch.Tensor,
    "Subject": Subject,
}  # fmt: skip
"""What may be given where a signature says so."""


@pytest.fixture
def calls(
    tiny_subject: Callable[..., Subject], tmp_path: Path
) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """By name, a function or method of the interface, and arguments that suit it."""
    folder = save_run(tmp_path, frame((2,), 4))
    run = steerlens.load_run(folder)
    subject = tiny_subject()
    suitable: dict[str, dict[str, Any]] = {
        "find": {"subject": subject, "concept": "w60", "top_k": 3},
        "generate": {"subject": subject, "features": 1, "factors": 2, "prompts": "w1"},
        "load_run": {"folder": folder},
        "load_subject": {"model": "local", "sae": "local", "layer": 2},
        "score_features": {"subject": subject, "features": 1},
        "steer": {"subject": subject, "feature": 1},
        "feature": {"layer": 2, "id": 1},
        "figures": {},
    }
    suitable["generate"] |= {"max_new_tokens": 1}
    every = FUNCTIONS | {name: getattr(run, name) for name in METHODS}
    assert suitable.keys() == every.keys(), "a function is new: give arguments that suit it"
    return {name: (every[name], suitable[name]) for name in every}


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """The sentence that refuses a call; None where it works."""
    sentence = None
    try:
        got = function(*args, **kwargs)
        if function is steerlens.steer:
            with got:
                pass
    except SteerlensError as error:
        sentence = str(error)
    assert "\n" not in (sentence or "")
    return sentence


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_a_call_that_does_not_fit_is_told_in_a_sentence(calls: Any, name: str) -> None:
    function, suitable = calls[name]
    parameters = inspect.signature(function).parameters
    of_name = function.__qualname__
    for needed, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD or parameter.default is not parameter.empty:
            continue
        others = {key: value for key, value in suitable.items() if key != needed}
        sentence = outcome(function, **others)
        assert sentence is not None
        assert f"{of_name}({', '.join(key for key in parameters if key != 'settings')})" in sentence
        assert f"{needed} must be given" in sentence
        misspelt = needed + "z"
        sentence = outcome(function, **others, **{misspelt: suitable[needed]})
        assert sentence is not None
        assert f"'{misspelt}'; did you mean '{needed}'" in sentence
    for key in parameters.keys() & suitable.keys():
        sentence = outcome(function, **suitable, **{key + "z": 1})
        assert sentence is not None
        assert f"'{key}z'; did you mean '{key}" in sentence
    many = outcome(function, *[1] * 20)
    assert many is not None
    assert "without a name, not 20" in many
    if suitable and "settings" not in parameters:
        first = next(iter(parameters))
        assert f"{first} is given twice" in str(outcome(function, 1, **suitable))


def is_of(annotation: str, value: Any) -> bool:
    words = re.sub(r"\[[^]]*\]", "", annotation).split(" | ")
    return isinstance(value, tuple(TYPES[word] for word in words)) and not (
        isinstance(value, str | bytes | Mapping) and not {"str", "Mapping"} & {*words}
    )


@pytest.mark.parametrize(
    "name",
    [
        *(
            # As many texts as values of all its arguments.
            pytest.param(name, marks=pytest.mark.slow) if name == "generate" else name
            for name in sorted(FUNCTIONS.keys() - {"load_subject"})
        ),
        *METHODS,
    ],
)
def test_a_value_that_is_none_of_an_argument_is_told_in_a_sentence(calls: Any, name: str) -> None:
    function, suitable = calls[name]
    assert outcome(function, **suitable) is None
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for value in VALUES:
            if (key, value) == ("prompts", None):
                continue  # 50 texts
            sentence = outcome(function, **suitable | {key: value})
            if not is_of(parameter.annotation, value):
                assert sentence is not None, f"{key}={value!r}"


@pytest.mark.parametrize("value", [object(), b"x", -1, {"a": 1}, "a=["])
@pytest.mark.parametrize("key", ["model", "sae", "layer", "model.path", "memory_budget"])
def test_a_subject_is_not_loaded_from_a_wrong_value(key: str, value: Any) -> None:
    given = {"model": "local", "sae": "local", "model.path": "nowhere"} | {key: value}
    assert outcome(steerlens.load_subject, **given) is not None
