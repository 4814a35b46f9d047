"""Values of `concepts.settings`: what each method takes is read from its source, as the method
itself imports torch.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from steerlens.config.registry import KINDS, PACKAGE, load_part, parts_of
from steerlens.errors import SteerlensError, nearest, unknown


def check_method_settings(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse settings that a method doesn't have or can't work with.

    Args:
        settings: `{METHOD: {SETTING: VALUE}}`.

    Raises:
        SteerlensError: which setting, and what it must be.
    """
    for method, typed in settings.items():
        config = settings_class(method)
        if config is None and method in parts_of("methods"):  # of another package
            config = load_part("methods", method).Config
        if config is None:
            raise SteerlensError(f"concepts.settings: {method} has no settings.")
        with_settings(config(), method, typed)


def settings_class(method: str) -> type[Any] | None:
    """Return the `Config` of a method of ours, made without importing the method; None where there
    is none of that name.
    """
    return _settings_classes().get(method)


@cache
def _settings_classes() -> dict[str, type[Any]]:
    """Run of every method's module only what makes its settings, and what that takes from
    `dataclasses` and `config`.
    """
    classes: dict[str, type[Any]] = {}
    for file in sorted((PACKAGE / KINDS["methods"].home).glob("[!_]*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        namespace: dict[str, Any] = {"__name__": __name__}  # where annotations are looked up
        needed = [node for node in body if _is_of_settings(node)]
        exec(compile(ast.Module(needed, []), str(file), "exec"), namespace)
        if "Config" in namespace:
            classes[namespace.get("NAME", file.stem)] = namespace["Config"]
    return classes


def _is_of_settings(node: ast.stmt) -> bool:
    """Say whether a statement at a module's top makes its `NAME` or its settings."""
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return module in ("__future__", "dataclasses") or module.startswith("steerlens.config")
    if isinstance(node, ast.Assign):
        return any(ast.unparse(target) in ("NAME", "Config") for target in node.targets)
    return isinstance(node, ast.ClassDef) and node.name.endswith("Config")


def with_settings(config: Any, method: str, typed: Mapping[str, Any]) -> Any:
    """Return a method's settings with those that were given.

    Args:
        config: its defaults, a dataclass.
        method: its name, for what is told.
        typed: values by name.

    Raises:
        SteerlensError: it has no such setting, or can't work with the value.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key in typed:
        if key not in fields:
            near = nearest(key, fields)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(fields) or 'none'}."
            raise SteerlensError(f"concepts.settings: {method} has no setting {key!r}; {hint}")
    as_tuples = {
        key: tuple(value) if isinstance(value, list) else value for key, value in typed.items()
    }
    for key, value in as_tuples.items():
        choices = fields[key].metadata.get("choices", (value,))
        if value not in choices:
            raise unknown(f"{key} of {method}", str(value), choices)
        if requirement := _requirement(getattr(config, key), value, fields[key].metadata):
            typed_value = list(value) if isinstance(value, tuple) else value
            raise SteerlensError(
                f"concepts.settings: {method}.{key}={typed_value} must be {requirement}."
            )
    return dataclasses.replace(config, **as_tuples)


def _requirement(default: Any, value: Any, limits: Mapping[str, Any]) -> str | None:
    """Return what a setting must be, in words, if `value` isn't that; None if it is.

    A number isn't negative, and one that counts isn't 0 where the default isn't, unless its
    `limits` say so (see `steerlens.steering.methods`).
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and value > limits.get("most", math.inf):
        return f"at most {limits['most']}"
    if is_number and value >= limits.get("below", math.inf):
        return f"below {limits['below']}"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        least = limits.get("least", int(default > 0))
        is_right = is_number and isinstance(value, int) and value >= least
        return None if is_right else f"a whole number of at least {least}"
    if isinstance(default, float):
        is_right = is_number and math.isfinite(value) and value >= 0
        return None if is_right else "a number of at least 0"
    if isinstance(default, tuple):
        is_right = isinstance(value, tuple) and len(value) and all(type(v) is int for v in value)
        return None if is_right else "a list of layers"
    if isinstance(default, str):
        return None if isinstance(value, str) else "a word"
    return None
