"""What lies in `conf/`: the options of every group, and what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from steerlens.config.schema.missing import MISSING

PACKAGE = Path(__file__).resolve().parents[1]

Entry = dict[str, Any]


def conf_dir() -> Path:
    """Return the folder of YAML files: inside an installed package, else at the top of the
    repository.
    """
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "conf"


@cache
def options() -> dict[str, list[str]]:
    """Return the options of every group of `conf/`."""
    return {
        folder.name: sorted(
            path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")
        )
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


@cache
def entries(group: str) -> dict[str, Entry]:
    """Return the content of every file of `group`, as written; `about` is its header's first
    sentence.
    """
    tree = {}
    for name in options()[group]:
        text = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        assert isinstance(values, dict)
        tree[name] = {**values, "about": header(text).about}
    return tree


def needed_keys(group: str, option: str, folders: tuple[str, ...] = ()) -> list[str]:
    """Return the keys that an option's file, or one that it takes in, leaves to the user: `???`.

    OmegaConf can't tell them: to a key that has a value already, be it null, it takes `???` for no
    news.

    Args:
        group: as in `conf/`.
        option: the file's name; of a file that is nowhere nothing is known.
        folders: those of the user's own beside `conf/`.
    """
    return open_keys(option_settings(group, option, folders))


def option_settings(group: str, option: str, folders: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what an option's file, and those that it takes in, set: values as written by their
    whole keys. The arguments are as of `needed_keys`.
    """
    files = [Path(folder) / group / f"{option}.yaml" for folder in (conf_dir(), *folders)]
    file = next((file for file in files if file.is_file()), None)
    return {} if file is None else _settings(group, file.read_text(encoding="utf-8"), folders)


@cache
def _settings(group: str, text: str, folders: tuple[str, ...]) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    if not isinstance(values, dict):
        return {}
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    prefix = group if package is None else package[1]
    settings: dict[str, Any] = {}
    for entry in values.pop("defaults", None) or []:
        if isinstance(entry, str) and entry.startswith("/"):
            default_group, _, name = entry[1:].partition("/")
            settings |= option_settings(default_group, name, folders)
        elif isinstance(entry, str):  # of its own group; a schema is no file
            settings |= option_settings(group, entry, folders)
    return settings | dict(_leaves(values, "" if prefix == "_global_" else f"{prefix}."))


def _leaves(values: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def open_keys(values: Any, prefix: str = "") -> list[str]:
    """Return the whole keys of a container whose value is `???`; nothing is resolved."""
    if not isinstance(values, dict):
        return [prefix.removesuffix(".")] if values == MISSING else []
    return [key for name, item in values.items() for key in open_keys(item, f"{prefix}{name}.")]


@dataclass(frozen=True)
class Header:
    """What the comment at the top of a YAML file says."""

    text: str
    """In one paragraph, without the commands."""
    commands: tuple[str, ...]
    """The commands that it shows, as they are typed."""
    takes: str | None
    """How long the first of them took, and on what, or an estimate; None where nobody knows."""

    @property
    def about(self) -> str:
        """Give the first sentence."""
        return re.split(r"(?<=[.?])\s", self.text, maxsplit=1)[0]


def header(text: str) -> Header:
    """Read the comment with which the content `text` of a YAML file begins."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    commands = tuple(line.strip() for line in lines if line.startswith("  "))
    takes = [line.removeprefix("Takes: ") for line in lines if line.startswith("Takes: ")]
    prose = [line for line in lines if not line.startswith(("  ", "Takes: "))]
    return Header(" ".join(prose), commands, takes[0] if takes else None)


def resolved(entry: Entry, **settings: str) -> Entry:
    """Return `entry` with what its values refer to filled in, some of its `settings` changed.

    The resolvers must be registered: `config.resolvers.register`.
    """
    values = OmegaConf.to_container(OmegaConf.create({**entry, **settings}), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def known_models() -> set[str]:
    """Return every name by which the entries of `conf/model` are known."""
    return {
        name
        for entry in entries("model").values()
        if entry["path"] != "???"
        for name in (entry["name"], entry["path"], *entry.get("aliases", []))
    }
