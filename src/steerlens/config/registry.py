"""Scoring methods by name: the entry points of the group `steerlens.scores`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from steerlens.errors import SteerlensError, unknown

GROUP = "steerlens.scores"

STRONGEST = 1e3
"""Up to this factor scores say something of the model: the paper's is 10."""


@dataclass
class ScoreConfig:
    """What every method's settings begin with."""

    method: str = "???"
    """Name of the method's entry point."""

    def check(self) -> None:
        """Refuse settings that can't work, before anything is loaded.

        Here are those that mean the same in every method; a method may add its own.
        """
        prompt = getattr(self, "prompt", None)
        if isinstance(prompt, str) and not prompt.strip():
            raise self.refusal("prompt", "is empty; give it at least one word")
        factor = getattr(self, "factor", None)
        if isinstance(factor, float) and not math.isfinite(factor):
            raise self.refusal("factor", "must be finite")
        for name in ("top_k", "k", "min_examples", "max_examples"):
            number = getattr(self, name, None)
            if isinstance(number, int) and number < 1:
                raise self.refusal(name, "must be at least 1")

    def warnings(self) -> list[str]:
        """Say what of the settings works but is hardly meant, in sentences."""
        factor = getattr(self, "factor", None)
        if not isinstance(factor, float):
            return []
        start = f"score.factor={factor:g} of score {self.method}"
        if factor == 0:
            return [f"{start} steers with nothing: its numbers are those of the unsteered prompt."]
        if factor < 0:
            return [f"{start} suppresses features: its numbers say what is left of their tokens."]
        if factor > STRONGEST:
            return [
                f"{start} is beyond {STRONGEST:g}: the feature drowns all else in the residual "
                "stream, so that its numbers say little of the model."
            ]
        return []

    def uses(self) -> Sequence[str]:
        """Which of the run's `seed` and `corpus` the numbers depend on.

        Finished scores are found again by what they depend on: the model, the SAE, these settings,
        and this. A method that needs neither says so, so that its scores are found under others.
        """
        return ("seed", "corpus")

    def files(self) -> Sequence[Path]:
        """The files that the numbers depend on."""
        return ()

    def resolve_source(self, shipped: str | None, examples: str | None) -> None:
        """Decide where to take what features fire on from.

        Args:
            shipped: the SAE's file of examples, if it stands for the corpus.
            examples: the SAE's file of examples, if it has one.
        """

    def examples(self) -> Sequence[Path]:
        """The files of examples that the method reads."""
        return ()

    def corpus_pass(self) -> tuple[int | None, int] | None:
        """What the method needs of a pass over the corpus: (context length, examples), or None."""
        return None

    def refusal(self, name: str, why: str) -> SteerlensError:
        """The error for setting `name`: `why` goes on after its value."""
        return SteerlensError(f"{name}={getattr(self, name)} of score {self.method} {why}.")


def methods() -> dict[str, EntryPoint]:
    """Every installed method by name, not yet imported."""
    return dict(_methods(tuple(sys.path)))


@cache
def _methods(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Looked for once on a path: that reads the metadata of everything that is installed."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_method(name: str) -> Any:
    """The module of method `name`, a `steerlens.scores.Method`.

    Refuses an unknown name, a module that can't be imported, and one without `Config` and `score`.
    """
    by_name = methods()
    if name not in by_name:
        raise unknown("scoring method", name, by_name)
    try:
        module = by_name[name].load()
    except (Exception, SystemExit) as error:  # somebody else's module: anything can happen
        raise SteerlensError(
            f"scoring method {name!r} ({by_name[name].value}) can't be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    for attribute in ("Config", "score"):
        if not hasattr(module, attribute):
            raise SteerlensError(
                f"scoring method {name!r} ({by_name[name].value}) has no {attribute!r}; "
                "see CONTRIBUTING.md, 'Add a scoring method'."
            )
    return module
