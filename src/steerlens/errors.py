"""The one exception that users see, and near-name suggestions for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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


def unknown(kind: str, name: str, choices: Iterable[str]) -> SteerlensError:
    """Return the error for a `name` that is no known `kind`, with what is meant, or the nearest
    names.
    """
    choices = sorted(choices)
    meant = [choice for choice in MEANT.get(name.lower(), ()) if choice in choices]
    near = meant[:1] or nearest(name, choices)
    if near:
        hint = f"did you mean {' or '.join(repr(match) for match in near)}?"
    elif len(choices) <= 12:
        hint = f"valid: {', '.join(choices)}." if choices else "none is available."
    else:
        hint = f"there are {len(choices)}, for example {', '.join(choices[:5])}."
    return SteerlensError(f"unknown {kind} {name!r}; {hint}")
