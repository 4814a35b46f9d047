"""What a client may ask for, and how much of it; everything else is refused in one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from steerlens.errors import SteerlensError, unknown

BODY_BYTES = 32_768
PROMPT_CHARS = 4_000
CONCEPT_CHARS = 200
FEATURES = 8
FACTORS = 16
STRONGEST = 1_000.0
"""The largest factor, whatever its sign, and the largest weight."""
NEW_TOKENS = 200
HOTTEST = 5.0

LIMITS = {
    "prompt": PROMPT_CHARS,
    "features": FEATURES,
    "factors": FACTORS,
    "max_new_tokens": NEW_TOKENS,
}


@dataclass(frozen=True)
class Writing:
    """Texts that are to be written: one at each factor, and the unsteered one."""

    layer: int
    features: tuple[int, ...]
    weights: tuple[float, ...]
    factors: tuple[float, ...]
    """Each once, without 0, in rising order."""
    prompt: str
    chat_template: bool
    operator: str
    positions: str
    max_new_tokens: int
    temperature: float
    seed: int


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds.

    Raises:
        SteerlensError: it holds none.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        fields = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SteerlensError("the request is no JSON.") from error
    if not isinstance(fields, dict):
        raise SteerlensError("the request is no JSON object.")
    return fields


def parse_writing(fields: dict[str, Any]) -> Writing:
    """Return what is to be written.

    Raises:
        SteerlensError: a key is missing, unknown or of another type, or asks for too much.
    """
    names = list(Writing.__dataclass_fields__)
    for key in fields.keys() - set(names):
        raise unknown("key of a request", str(key)[:40], names)
    if absent := [name for name in names if name not in fields]:
        raise SteerlensError(f"the request has no {absent[0]}.")
    features = _list("features", fields["features"], 1, FEATURES, _integer(0, 2**31))
    weights = _list("weights", fields["weights"], 1, FEATURES, _number(-STRONGEST, STRONGEST))
    if len(set(features)) < len(features):
        raise SteerlensError("features names one twice.")
    if len(weights) != len(features):
        raise SteerlensError(f"weights has {len(weights)} numbers for {len(features)} features.")
    factors = _list("factors", fields["factors"], 0, FACTORS, _number(-STRONGEST, STRONGEST))
    return Writing(
        layer=_integer(0, 2**31)("layer", fields["layer"]),
        features=features,
        weights=weights,
        factors=tuple(sorted({float(factor) for factor in factors} - {0.0})),
        prompt=parse_text("prompt", fields["prompt"], PROMPT_CHARS),
        chat_template=_boolean("chat_template", fields["chat_template"]),
        operator=parse_text("operator", fields["operator"], 40),
        positions=parse_text("positions", fields["positions"], 40),
        max_new_tokens=_integer(1, NEW_TOKENS)("max_new_tokens", fields["max_new_tokens"]),
        temperature=_number(0.0, HOTTEST)("temperature", fields["temperature"]),
        seed=_integer(0, 2**31)("seed", fields["seed"]),
    )


def parse_text(name: str, value: Any, most: int) -> str:
    """Return a text of at most so many characters, not empty, that a file can hold."""
    if not isinstance(value, str) or not value.strip():
        raise SteerlensError(f"{name} must be a text, and not empty.")
    if len(value) > most:
        raise SteerlensError(f"{name} has {len(value):,} characters; at most {most:,} are read.")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise SteerlensError(f"{name} has half of a character.")
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SteerlensError(f"{name} must be true or false.")
    return value


def _integer(least: int, most: int) -> Callable[[str, Any], int]:
    def parse(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise SteerlensError(f"{name} must be an integer from {least} to {most:,}.")
        return value

    return parse


def _number(least: float, most: float) -> Callable[[str, Any], float]:
    def parse(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not least <= value <= most:
            raise SteerlensError(f"{name} must be a number from {least:g} to {most:g}.")
        return float(value)

    return parse


def _list(
    name: str, values: Any, least: int, most: int, item: Callable[[str, Any], Any]
) -> tuple[Any, ...]:
    if not isinstance(values, list) or not least <= len(values) <= most:
        raise SteerlensError(f"{name} must be a list of {least} to {most}.")
    return tuple(item(name, value) for value in values)
