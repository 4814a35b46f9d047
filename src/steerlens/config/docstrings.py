"""What the schema says of every setting: the text under each field of its dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any

from steerlens.config.overrides import as_typed
from steerlens.config.registry import load_part, parts_of
from steerlens.config.schema import MISSING, RunConfig, key_fields, metric_defaults


@dataclass(frozen=True)
class Setting:
    """One key of the configuration."""

    key: str
    """As on the command line: `steer.operator`."""
    type: str
    """As in the schema, None as null."""
    default: str
    """As it is typed; `???` where a value has to be given."""
    about: str
    """What the schema says of it, in one paragraph."""


@cache
def field_docstrings(kind: type) -> dict[str, str]:
    """Return the text under each field of a dataclass, those of its bases included, unwrapped."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, after in zip(definition.body, definition.body[1:], strict=False):
            if not (
                isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            ):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                texts[statement.target.id] = " ".join(str(after.value.value).split())
    return texts


def settings_of(kind: type, prefix: str = "") -> list[Setting]:
    """Return the settings of a dataclass that holds plain values; groups inside it are left out.

    Args:
        kind: a dataclass of the schema, or the `Config` of a scoring method.
        prefix: what stands before the names of its fields on the command line: `steer.`.
    """
    texts = field_docstrings(kind)
    return [
        Setting(
            f"{prefix}{field.name}",
            str(field.type).replace("None", "null").replace("Any", "any"),
            _default(field),
            texts.get(field.name, ""),
        )
        for field in key_fields(kind)
        if field.name not in group_classes() or kind is not RunConfig
    ]


def group_classes() -> dict[str, type]:
    """Return the groups that have a dataclass of the schema, by their names."""
    classes: dict[str, type] = {}
    for field in key_fields(RunConfig):
        name = str(field.type).removesuffix(" | None")
        kind = getattr(inspect.getmodule(RunConfig), name, None)
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            classes[field.name] = kind
    return classes


def method_settings(method: str) -> list[Setting]:
    """Return the settings of a scoring method, but for its name.

    Raises:
        SteerlensError: there is no such method, or it can't be imported.
    """
    config = load_part("scores", method).Config
    settings = settings_of(config, f"score.{method}.")
    return [setting for setting in settings if setting.key != f"score.{method}.method"]


def metric_settings() -> list[Setting]:
    """Return the settings of every metric."""
    return [
        setting
        for name, config in metric_defaults().items()
        for setting in settings_of(type(config), f"metrics.{name}.")
    ]


def all_settings() -> list[Setting]:
    """Return every setting: those without a group, then group by group, then scoring methods."""
    by_part = ("score", "metrics")
    settings = [setting for setting in settings_of(RunConfig) if setting.key not in by_part]
    for group, kind in group_classes().items():
        settings += settings_of(kind, f"{group}.")
    settings += metric_settings()
    for method in sorted(parts_of("scores")):
        settings += method_settings(method)
    return settings


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING or value is MISSING:
        return "???"
    return as_typed(value)
