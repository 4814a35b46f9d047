"""What jobs of one process share: the last model, and as many of its SAEs as a budget allows."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sae_lens import SAE

    from steerlens.engine.subject.model import LoadedModel

LoadedSae = tuple["SAE[Any]", dict[str, Any]]


class WeightCache:
    """Loaded weights, found again by all that loading depends on.

    For each role (the steered model, the evaluator) one model is kept, and given back before
    another is loaded: two might not fit.
    """

    def __init__(self) -> None:
        self._models: dict[str, tuple[str, LoadedModel]] = {}
        self._saes: dict[str, LoadedSae] = {}
        """The one used last comes last."""

    def model(self, role: str, key: Any, load: Callable[[], LoadedModel]) -> LoadedModel:
        """Return the model of `key`, loaded if it isn't the last one of its role."""
        name = _text(key)
        if role not in self._models or self._models[role][0] != name:
            self._models.pop(role, None)
            _give_back()
            self._models[role] = (name, load())
        return self._models[role][1]

    def sae(self, key: Any, budget: int, load: Callable[[], LoadedSae]) -> LoadedSae:
        """Return the SAE of `key`; of all that are kept the oldest go until `budget` bytes are
        enough.
        """
        name = _text(key)
        weights = self._saes.pop(name, None) or load()
        self._saes[name] = weights
        while len(self._saes) > 1 and sum(_size(sae) for sae, _ in self._saes.values()) > budget:
            del self._saes[next(iter(self._saes))]
        return weights

    def size(self) -> int:
        """Return bytes of all that is kept, and could be given back."""
        models = [lm.bridge for _, lm in self._models.values()]
        return sum(map(_size, [*models, *(sae for sae, _ in self._saes.values())]))

    def clear(self) -> None:
        """Give all memory back."""
        self._models.clear()
        self._saes.clear()
        _give_back()


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _text(key: Any) -> str:
    return json.dumps(key, sort_keys=True, default=str)


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
