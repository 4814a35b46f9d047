"""Supervised methods: one module each, in this folder or in another package.

A method is a module with

- a first docstring line that says what it does;
- `NAME`, what tables call it; of another package's that is the name of its entry point;
- `Config`, a dataclass: the method's settings, AxBench's by default. A number isn't negative, and
  one that counts isn't 0; a field's metadata may set other limits: `least`, `most`, `below`,
  `choices`. It is made without the rest of the module, and so takes nothing from there;
- `fit(task, config, seed)`, which returns a direction for each concept of the task. A concept's
  direction must not depend on the others, but for rounding;
- `TRAINS = True`, if that takes long: a few concepts at a time are learnt and kept;
- `READS_TEXTS = False`, if it learns from no text;
- `budget(config, n_positives, n_negatives)`, if it trains or measures: the `training.Budget` of a
  concept with so many texts.

LoReFT and LoRA aren't directions: they change several layers (`loreft`, `lora`). Steering by an
instruction is `prompt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from steerlens.steering.methods.directions import Directions
    from steerlens.steering.methods.task import Task

__all__ = ["Method"]


class Method(Protocol):
    """The interface of a method's module."""

    __name__: str
    __doc__: str | None
    Config: type[Any]

    def fit(self, task: Task, config: Any, seed: int) -> Directions:
        """Learn a direction for each of the task's concepts."""
        ...
