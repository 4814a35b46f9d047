"""Supervised methods: one module each, by the name that a table gives it in `METHODS`.

A method is a module with

- a first docstring line that says what it does, and `NAME`;
- `Config`, a dataclass: the method's settings, AxBench's by default;
- `fit(task, config, seed)`, which returns a direction for each concept of the task. A concept's
  direction must not depend on the others, but for rounding.

LoReFT and LoRA aren't directions: they change several layers (`loreft`, `lora`). Steering by an
instruction is `prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.steering.methods import (
    diffmean,
    lat,
    pca,
    probe,
    random,
    reft_r1,
    sae_a,
    sae_features,
    ssv,
)

if TYPE_CHECKING:
    from steerlens.steering.methods.directions import Directions
    from steerlens.steering.methods.task import Task

__all__ = ["METHODS", "Method"]


class Method(Protocol):
    """The interface of a method's module."""

    __name__: str
    __doc__: str | None
    NAME: str
    Config: type[Any]

    def fit(self, task: Task, config: Any, seed: int) -> Directions: ...


_MODULES: tuple[Any, ...] = (diffmean, probe, pca, lat, ssv, reft_r1, random, sae_features, sae_a)

METHODS: Mapping[str, Method] = {module.NAME: module for module in _MODULES}
