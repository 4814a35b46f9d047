"""Command-line overrides: parsed by Hydra's own parser, quoted anew when it can't read them."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from steerlens.errors import SteerlensError


def quoted(key: str, text: str) -> str:
    """Return `key=text` so that, typed in a shell, Hydra reads exactly `text`."""
    return shlex.quote(override(key, text))


def override(key: str, value: Any) -> str:
    """Return `key=value` in Hydra's grammar, for any value that a YAML file could hold."""
    return f"{key}={_grammar(value)}"


def _grammar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_grammar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ",".join(_grammar(item) for item in value) + "]"
    text = str(value)
    # Double quotes unless the text has some: fewer backslashes to read.
    quote = Quote.single if '"' in text and "'" not in text else Quote.double
    return QuotedString(text, quote).with_quotes()


def as_typed(value: Any) -> str:
    """Return a value as it is typed, but for quotes that a shell needs."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./:@%+-]+", value):
        return f'"{value}"'
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def proposal(key: str, text: str) -> str:
    """Return `key=text` as a word to type in a shell that Hydra reads as what was meant.

    Texts in a list or in braces are quoted one by one; what Hydra can't read even so is one text.
    """
    meant = f"{key}={_meant(text)}"
    return shlex.quote(meant) if _is_readable(meant) else quoted(key, text)


def _meant(text: str) -> str:
    """Return `text`, of a whole value or of a part of one, in Hydra's grammar."""
    bare = text.strip()
    inner = bare[1:-1].strip()
    if bare.startswith("[") and bare.endswith("]") and inner:
        return f"[{','.join(_meant(item.strip()) for item in _split(inner, ','))}]"
    if bare.startswith("{") and bare.endswith("}") and inner:
        pairs = [_split(pair, ":", 1) for pair in _split(inner, ",")]
        if all(len(pair) == 2 for pair in pairs):
            members = (f"{name.strip()}:{_meant(value.strip())}" for name, value in pairs)
            return f"{{{','.join(members)}}}"
    return text if _is_readable(f"x=[{text}]", items=1) else _grammar(text)


def _split(text: str, separator: str, at_most: int = -1) -> list[str]:
    """Return `text` between separators that stand neither in brackets nor in quotes."""
    parts, start, depth, at = [], 0, 0, 0
    while at < len(text):
        char = text[at]
        closing = _closing_quote(text, at) if not text[start:at].strip() else None
        if closing is not None:
            at = closing
        elif char in "[{(":
            depth += 1
        elif char in ")}]":
            depth = max(depth - 1, 0)
        elif char == separator and depth == 0 and len(parts) != at_most:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [*parts, text[start:]]


def _closing_quote(text: str, at: int) -> int | None:
    """Return where the quotes that open at `at` close again; None if none open, or none close."""
    match = re.compile(r"""(["'])(?:\\.|(?!\1).)*\1""", re.DOTALL).match(text, at)
    return match.end() - 1 if match else None


def _is_readable(line: str, items: int | None = None) -> bool:
    """Return whether Hydra reads `line` as one value; with `items`, as a list of so many."""
    try:
        parsed = OverridesParser.create().parse_override(line)
    except HydraException:
        return False
    if parsed.is_sweep_override():
        return False
    value = parsed.value()
    return items is None or (isinstance(value, list) and len(value) == items)


def parse(
    overrides: Sequence[str], multirun: bool = False, loader: ConfigLoader | None = None
) -> list[Override]:
    """Return every override as Hydra reads it; one sentence for the first that it can't read.

    Without `multirun`, several values for one key are refused too.
    """
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for index, text in enumerate(overrides):
        if not text.partition("=")[0].strip("+~"):
            raise SteerlensError(
                f"{text!r} has no key; write key=value, without spaces around the =."
            )
        if _is_bare(text):
            raise _no_equal_sign(overrides, index)
        try:
            # Once for all that ask: of thousands of feature ids it takes seconds. What a pattern
            # matches, the loader tells.
            override = parser.parse_overrides([text])[0] if "glob(" in text else _parsed(text)
        except HydraException as error:
            # An unquoted value with spaces is unreadable up to the first of them.
            if any(_is_bare(word) for word in overrides[index + 1 : index + 2]):
                raise _no_equal_sign(overrides, index + 1) from error
            raise _unreadable(parser, text) from error
        if override.is_sweep_override() and not multirun:
            raise _several_values(override)
        parsed.append(override)
    return parsed


@lru_cache(maxsize=256)
def _parsed(text: str) -> Override:
    return OverridesParser.create().parse_overrides([text])[0]


def _is_bare(word: str) -> bool:
    return "=" not in word and not word.startswith("~")


def _no_equal_sign(overrides: Sequence[str], index: int) -> SteerlensError:
    """Return a word without `=`, most often a piece of a value with spaces."""
    word = overrides[index]
    before = index - 1
    while before >= 0 and "=" not in overrides[before]:
        before -= 1
    if before < 0:
        return SteerlensError(f"{word!r} is no key=value; see `steerlens --help`.")
    after = index + 1
    while after < len(overrides) and "=" not in overrides[after]:
        after += 1
    key, _, text = " ".join(overrides[before:after]).partition("=")
    return SteerlensError(
        f"{word!r} is no key=value; if it belongs to the value before it, quote that twice, "
        f"for the shell and for Hydra: {proposal(key, text)}"
    )


def _unreadable(parser: OverridesParser, line: str) -> SteerlensError:
    """Return an override that isn't in Hydra's grammar, most often a text with , ( # = or
    quotes.
    """
    key, _, text = line.partition("=")
    try:
        parser.parse_override(f"{key}=1")
    except HydraException:
        return SteerlensError(f"{key!r} is no key; keys look like layer, model or score.prompt.")
    if text.startswith("~/"):  # which the shell expands only at the beginning of a word
        return SteerlensError(
            f"Hydra can't read ~; write {quoted(key, f'{Path.home()}{text[1:]}')}"
        )
    return SteerlensError(
        f"Hydra can't read {line!r}; quote the value twice, for the shell and for Hydra: "
        f"{proposal(key, text)}"
    )


def _several_values(override: Override) -> SteerlensError:
    key, text = override.get_key_element(), override.get_value_string()
    line = f"{key}={text}"
    message = f"{line!r} asks for several runs: add -m for one run per value"
    if override.value_type is not ValueType.SIMPLE_CHOICE_SWEEP:
        return SteerlensError(message + ".")
    if not re.search(r"\s", text):
        message += f", write {shlex.quote(f'{key}=[{text}]')} for one list"
    return SteerlensError(f"{message}, or {quoted(key, text)} for one text.")


def with_experiment(overrides: Sequence[str]) -> list[str]:
    """Return `overrides`, before them `experiment=concept` where a concept is all that is asked.

    `concept` itself is the word alone: what is done about it is said by an experiment, or by an
    option that refers to it (`features=concept`, `score=concept`). As an override without an
    experiment `concept=WORD` stands for `experiment=concept concept=WORD`, on the command line and
    in Python; a file says which experiment it is about under its `defaults`.

    Settings of methods have no schema here: they are added to the few that an experiment names.
    """
    keys = {word.lstrip("+").partition("=")[0] for word in overrides}
    is_all = "concept" in keys and "experiment" not in keys
    words = [
        f"++{word}" if word.startswith(("concepts.settings=", "concepts.settings.")) else word
        for word in overrides
    ]
    return ["experiment=concept", *words] if is_all else words


def jobs(parsed: Sequence[Override]) -> list[list[str]]:
    """Return overrides of the jobs to check before a multirun, so that each value occurs in one.

    That is one job, and for every further value of a key the same job with that value: a sweep of
    thousands of combinations is checked in as many steps as there are values.
    """
    fixed = []
    swept: list[list[str]] = []
    for override in parsed:
        if override.is_discrete_sweep():
            key = override.get_key_element()
            values = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not values:
                raise SteerlensError(
                    f"{override.input_line!r} matches nothing, so nothing would run."
                )
            swept.append(values)
        elif not override.is_sweep_override():  # an interval is up to the sweeper that takes it
            fixed.append(override.input_line or "")
    first = [values[0] for values in swept]
    combinations = [fixed + first]
    for index, values in enumerate(swept):
        combinations += [
            fixed + first[:index] + [value] + first[index + 1 :] for value in values[1:]
        ]
    return combinations


def n_jobs(parsed: Sequence[Override]) -> int | None:
    """Return the number of all combinations of the values that are swept over; None if not
    countable.
    """
    counts: dict[str, int] = {}
    for override in parsed:  # of one key given twice, the last counts
        if override.is_sweep_override() and not override.is_discrete_sweep():
            return None
        swept = override.is_discrete_sweep()
        counts[override.get_key_element()] = (
            sum(1 for _ in override.sweep_string_iterator()) if swept else 1
        )
    return math.prod(counts.values())
