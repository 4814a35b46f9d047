"""Tiny models that tests share: loading one takes a seventh of a second, more than most tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steerlens.engine.subject import WeightCache
from steerlens.engine.subject.model import LoadedModel


class UnchangedModels(WeightCache):
    """Models found again by all that loading depends on, as long as no test has changed them.

    SAEs are loaded each time: tests write to them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loaded: dict[str, tuple[LoadedModel, list[Any]]] = {}

    def model(self, role: str, key: Any, load: Callable[[], LoadedModel]) -> LoadedModel:
        name = repr(key)
        lm, state = self._loaded.get(name, (None, None))
        if lm is None or state_of(lm) != state:
            lm = load()
            self._loaded[name] = (lm, state_of(lm))
        return lm

    def sae(self, key: Any, budget: int, load: Callable[[], Any]) -> Any:
        return load()


def state_of(lm: LoadedModel) -> list[Any]:
    """Whatever a test may change of a model, or leave on it."""
    hf_model: Any = lm.bridge.original_model
    tokenizer: Any = lm.tokenizer
    return [
        {name: id(value) for name, value in vars(lm).items()},
        [
            (weight.dtype, weight.requires_grad, weight.grad is None, weight.double().sum().item())
            for weight in lm.bridge.parameters()
        ],
        [
            (len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
            for module in lm.bridge.modules()
        ],
        repr(lm.bridge.cfg),
        repr(hf_model.config.to_dict()),
        repr(hf_model.generation_config.to_dict()),
        tokenizer.backend_tokenizer.to_str(),
        (tokenizer.chat_template, tokenizer.special_tokens_map),
    ]
