"""What lies in `conf/`: the options of every group, and what they say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

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


@dataclass(frozen=True)
class Header:
    """What the comment at the top of a YAML file says."""

    text: str
    """In one paragraph, without the commands."""
    commands: tuple[str, ...]
    """The commands that it shows, as they are typed."""
    takes: str | None
    """How long the first of them took, and on what; None where nobody has measured it."""

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

    The resolvers must be registered: `config.compose.register`.
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
