"""The settings of scores: inside, `score` is always `{name: settings}`, and they are
`score.NAME.KEY`. Of a single score they may be written `score.KEY`, everywhere.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from contextlib import suppress

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, ValueNode, open_dict

from steerlens.config.registry import load_part, parts_of

FLAT = re.compile(r"score\.(\w+)")


def method_keys(method: str) -> list[str]:
    """Return the names of a scoring method's settings; [] if there is no such method, or it
    can't be imported.
    """
    with suppress(Exception):  # somebody else's module: not what is being asked here
        if method in parts_of("scores"):
            return [field.name for field in dataclasses.fields(load_part("scores", method).Config)]
    return []


def chosen_scores(tree: DictConfig) -> list[str]:
    """Return the names under `score` that hold the settings of a method."""
    score = OmegaConf.select(tree, "score", throw_on_missing=False)
    if not isinstance(score, DictConfig):
        return []
    return [
        str(name)
        for name, node in score.items_ex(resolve=False)
        if isinstance(node, DictConfig) and "method" in node
    ]


def is_flat(override: Override) -> bool:
    """Return whether an override sets `score.KEY`."""
    return (
        FLAT.fullmatch(override.key_or_group) is not None
        and not (override.is_delete() or override.is_add() or override.is_force_add())
        and not isinstance(override.value(), dict)
    )


def in_full(parsed: Sequence[Override], tree: DictConfig | None) -> list[str]:
    """Return overrides with `score.KEY` as `score.NAME.KEY`.

    Args:
        parsed: the overrides.
        tree: what those compose that don't set a `score.KEY`; None if that isn't the same in all
            jobs of a sweep. Then `score.KEY` is only added, and `fold` finds the score in each.
    """
    names = chosen_scores(tree) if tree is not None else []
    lines = []
    for override in parsed:
        line = override.input_line or ""
        if is_flat(override):
            key = override.key_or_group.partition(".")[2]
            if tree is None:
                line = f"++{line}"
            elif len(names) == 1 and key in method_keys(names[0]) and not _is_in_file(tree, key):
                line = f"score.{names[0]}.{line.partition('.')[2]}"
        lines.append(line)
    return lines


def _is_in_file(tree: DictConfig, key: str) -> bool:
    """Return whether an experiment's file, or an option of one's own, already has `score.KEY`."""
    return key in tree.score and not isinstance(tree.score._get_node(key), DictConfig)


def fold(tree: DictConfig) -> str | None:
    """Move each `score.KEY` in `tree`, of a file or a sweep, to the one score that is chosen.

    Returns:
        A key that can't be moved, because it isn't one of the score's, or there are several scores.
    """
    names = chosen_scores(tree)
    score = OmegaConf.select(tree, "score", throw_on_missing=False)
    if not isinstance(score, DictConfig):
        return None
    flat = [str(key) for key in score if str(key) not in names]
    if not flat:
        return None
    with open_dict(score):
        if "method" in flat:  # of a method's file without a package, or of an earlier config.yaml
            for name in names:
                score.pop(name)
            return None
        for key in flat:
            if len(names) != 1 or key not in method_keys(names[0]):
                return key
            node = score._get_node(key)
            value = node._value() if isinstance(node, ValueNode) else node
            OmegaConf.update(score, f"{names[0]}.{key}", value)
            score.pop(key)
    return None


def in_short(key: str, names: Sequence[str]) -> str:
    """Return `score.NAME.KEY` as `score.KEY` where NAME is the only one of the scores `names`."""
    if len(names) == 1 and key.startswith(f"score.{names[0]}."):
        return f"score.{key.removeprefix(f'score.{names[0]}.')}"
    return key
