"""The one exception that users see, near-name suggestions for it, and calls that don't fit."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MEANT = {
    **dict.fromkeys(("gpu", "nvidia"), ("cuda",)),
    "metal": ("mps",),
    **dict.fromkeys(("off", "no", "false", "none"), ("none", "disabled")),
    **dict.fromkeys(("on", "yes", "true"), ("online", "grid")),
}
"""What words mean whose letters are nearer to something else: the first that is valid."""


class SteerlensError(Exception):
    """Bad input or a bad environment, told in one sentence that says what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send before they kill."""


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Return the up to `n` members of `choices` that look most like `name`, best first."""
    by_lower: dict[str, str] = {}
    for choice in choices:
        by_lower.setdefault(choice.lower(), choice)
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=n, cutoff=0.5)
    return [by_lower[match] for match in matches]


def unknown(kind: str, name: Any, choices: Iterable[str]) -> SteerlensError:
    """Return the error for a `name` that is no known `kind`, with what is meant, or the nearest
    names.
    """
    choices = sorted(choices)
    text = str(name)
    meant = [choice for choice in MEANT.get(text.lower(), ()) if choice in choices]
    near = meant[:1] or nearest(text, choices)
    if near:
        hint = f"did you mean {' or '.join(repr(match) for match in near)}?"
    elif len(choices) <= 12:
        hint = f"valid: {', '.join(choices)}." if choices else "none is available."
    else:
        hint = f"there are {len(choices)}, for example {', '.join(choices[:5])}."
    return SteerlensError(f"unknown {kind} {name!r}; {hint}")


def refuses_misfits(function: Callable[P, T]) -> Callable[P, T]:
    """Make a call that doesn't fit the signature of `function` a `SteerlensError`.

    It names the argument that is missing, unknown, given twice or one too many, where Python raises
    a TypeError.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def fitting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            raise _misfit(function.__qualname__, signature, args, kwargs) from None
        return function(*args, **kwargs)

    return fitting


def _misfit(
    name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> SteerlensError:
    """Return what is wrong with a call of the function `name`."""
    every = [each for each in signature.parameters.values() if each.name != "self"]
    args = args[len(signature.parameters) - len(every) :]
    parameters = [each for each in every if each.kind is not each.VAR_KEYWORD]
    takes_more = len(parameters) < len(every)
    names = [each.name for each in parameters]
    by_position = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
    passed = {*by_position[: len(args)], *kwargs}
    missing = [each.name for each in parameters if each.default is each.empty]
    missing = [needed for needed in missing if needed not in passed]
    for key in [key for key in kwargs if key not in names]:
        # What goes into **settings may be a misspelt argument, where one is missing.
        if not takes_more or difflib.get_close_matches(key, missing, cutoff=0.75):
            return unknown(f"argument of {name}()", key, missing if takes_more else names)
    call = f"{name}({', '.join(names)})"
    if len(args) > len(by_position):
        n = len(by_position)
        return SteerlensError(
            f"{call} takes {n} argument{'s' * (n != 1)} without a name, not {len(args)}."
        )
    for key in by_position[: len(args)]:
        if key in kwargs:
            return SteerlensError(f"{call}: {key} is given twice.")
    return SteerlensError(f"{call}: {' and '.join(missing)} must be given.")
