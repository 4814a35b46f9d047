"""Parts of every kind by name: scores, metrics, methods, judges, studies, operators and the like.

Ours lie in one place for each kind: a folder with a module for each, found by what it defines, or
a module with a function for each. Those of other packages are entry points of the group
`steerlens.KIND`, of the same shape. Names are read from the files, so that listing and checking
import nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

from steerlens.errors import SteerlensError, unknown

PACKAGE = Path(__file__).resolve().parents[1]

STRONGEST = 1e3
"""Up to this factor scores say something of the model: the paper's is 10."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """One kind of parts."""

    noun: str
    """What sentences call one of them."""
    home: str
    """Where ours lie in the package: a folder of modules, or a module of functions."""
    needs: tuple[str, ...] = ()
    """What every module of the kind defines; () for functions."""

    @property
    def is_functions(self) -> bool:
        """Whether a part is a function instead of a module."""
        return self.home.endswith(".py")


KINDS = {
    "scores": Kind("scoring method", "scores", ("Config", "score")),
    "metrics": Kind("metric", "steering/metrics", ("Config", "measure")),
    "methods": Kind("steering method", "steering/methods", ("Config", "fit")),
    "judges": Kind("judge", "judges", ("check", "load")),
    "studies": Kind("study.name", "report/studies", ("answer",)),
    "operators": Kind("steer.operator", "engine/intervention/operators.py"),
    "units": Kind("steer.unit", "engine/intervention/units.py"),
    "rules": Kind("choice.rule", "analysis/rules.py"),
}
"""By the entry-point group `steerlens.KIND`. CONTRIBUTING says what each has to define."""


def parts_of(kind: str) -> dict[str, str]:
    """Return every part of `kind` by name, with the address that it is loaded from; nothing is
    imported.

    Ours come first: another package can't take the place of one of them.
    """
    return {**_installed(kind, tuple(sys.path)), **_ours(kind)}


@cache
def _installed(kind: str, path: tuple[str, ...]) -> dict[str, str]:
    """Look once on a path: that reads the metadata of everything that is installed."""
    return {point.name: point.value for point in entry_points(group=f"steerlens.{kind}")}


@cache
def _ours(kind: str) -> dict[str, str]:
    home = KINDS[kind].home
    package = "steerlens." + home.removesuffix(".py").replace("/", ".")
    if KINDS[kind].is_functions:
        names = _definitions(PACKAGE / home, functions_only=True)
        return {name: f"{package}:{name}" for name in names if not name.startswith("_")}
    modules: dict[str, str] = {}
    for file in sorted((PACKAGE / home).glob("[!_]*.py")):
        defined = _definitions(file)
        if set(KINDS[kind].needs) <= defined.keys():
            modules[defined.get("NAME") or file.stem] = f"{package}.{file.stem}"
    return modules


def _definitions(file: Path, functions_only: bool = False) -> dict[str, str | None]:
    """Return what a module defines at its top, in order, with the value of what is set to a
    text.
    """
    defined: dict[str, str | None] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            defined[node.name] = None
        elif functions_only:
            continue
        elif isinstance(node, ast.ClassDef):
            defined[node.name] = None
        elif isinstance(node, ast.Assign):
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            text = value if isinstance(value, str) else None
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            defined |= dict.fromkeys(names, text)
    return defined


def load_part(kind: str, name: str) -> Any:
    """Import the part `name` of `kind`: a module, or a function.

    Raises:
        SteerlensError: there is none of that name, it can't be imported, or it lacks what its kind
            defines.
    """
    noun, by_name = KINDS[kind].noun, parts_of(kind)
    if not isinstance(name, str) or name not in by_name:
        raise unknown(noun, name, by_name)
    address = by_name[name]
    module, _, attribute = address.partition(":")
    try:
        part: Any = importlib.import_module(module)
        for step in filter(None, attribute.split(".")):
            part = getattr(part, step)
    except (Exception, SystemExit) as error:  # somebody else's module: anything can happen
        raise SteerlensError(
            f"{noun} {name!r} ({address}) can't be imported: {type(error).__name__}: {error}"
        ) from error
    if KINDS[kind].is_functions and not callable(part):
        raise SteerlensError(f"{noun} {name!r} ({address}) is no function.")
    for attribute in KINDS[kind].needs:
        if not hasattr(part, attribute):
            raise SteerlensError(
                f"{noun} {name!r} ({address}) has no {attribute!r}; see CONTRIBUTING.md, "
                "'Add a part'."
            )
    return part


def loadable_parts(kind: str) -> dict[str, Any]:
    """Return every part of `kind` that can be imported, by name; the others are told and left
    out.
    """
    loaded: dict[str, Any] = {}
    for name in parts_of(kind):
        try:
            loaded[name] = load_part(kind, name)
        except SteerlensError as error:
            if name in _ours(kind):
                raise
            _warn_once(f"{error} It is left out.")
    return loaded


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def source_digest(kind: str, name: str) -> str | None:
    """Digest of the source of another package's part, for keys of the cache; None for what is
    ours, whose code every key covers.
    """
    if name in _ours(kind) or name not in parts_of(kind):
        return None
    source = inspect.getsource(load_part(kind, name))
    return hashlib.sha256(source.encode()).hexdigest()


BLOCK = 1024
"""Features that are scored, and kept, at a time: what a killed run can lose of one method at
most."""

TIMED_PROMPTS = 2
"""Prompts that a plan times a method on which has many."""


@dataclass
class ScoreConfig:
    """What every method's settings begin with."""

    method: str = "???"
    """Name of the method's entry point."""

    AT_ONCE: ClassVar[int | None] = None
    """Features that are scored, and kept, at a time, where each takes long; None = `BLOCK`."""
    FILLS: ClassVar[Sequence[str]] = ()
    """Columns of numbers that the method fills, which `selection.score` may name; () where it
    doesn't say."""

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

    def check_subject(self, model: str, sae: str) -> None:
        """Refuse what is of another model or SAE than those that tables call so, before either is
        loaded.
        """

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
        """Return which of the run's `seed` and `corpus` the numbers depend on.

        Finished scores are found again by what they depend on: the model, the SAE, these settings,
        and this. A method that needs neither says so, so that its scores are found under others.
        """
        return ("seed", "corpus")

    def files(self) -> Sequence[Path]:
        """Return the files that the numbers depend on."""
        return ()

    def resolve_source(self, shipped: str | None, examples: str | None) -> None:
        """Decide where to take what features fire on from.

        Args:
            shipped: the SAE's file of examples, if it stands for the corpus.
            examples: the SAE's file of examples, if it has one.
        """

    def examples(self) -> Sequence[Path]:
        """Return the files of examples that the method reads."""
        return ()

    def looks_up(self) -> Any:
        """Return the concept, as it was typed, whose tokens the method looks up; None for none."""
        return getattr(self, "concept", None)

    def corpus_pass(self) -> tuple[int | None, int] | None:
        """Return what the method needs of a pass over the corpus: (context length, examples), or
        None.
        """
        return None

    def uses_lens(self) -> bool:
        """Return whether the numbers depend on the tokens that a feature promotes, and so on the
        run's lens.
        """
        return False

    def n_later(self) -> int | None:
        """Return how many SAEs of later layers the method looks at, of those that the run has; None
        = all.
        """
        return 0

    def reduced(self) -> tuple[ScoreConfig, float]:
        """Return settings with which a plan times the method on few of its texts or prompts, and
        how many times as long the method itself takes.
        """
        prompts = getattr(self, "prompts", None)
        if not isinstance(prompts, list) or len(prompts) <= TIMED_PROMPTS:
            return self, 1.0
        fewer: Any = {"prompts": prompts[:TIMED_PROMPTS]}
        return replace(self, **fewer), len(prompts) / TIMED_PROMPTS

    def refusal(self, name: str, why: str) -> SteerlensError:
        """Return the error for setting `name`: `why` goes on after its value."""
        return SteerlensError(f"{name}={getattr(self, name)} of score {self.method} {why}.")
