"""Forwards of the bridge up to the final norm, and the keys and values that they leave behind.

Whatever steerlens asks of a model goes through here, so that `agreement` can compare it with the
model's own logits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge


def final_vectors(
    bridge: TransformerBridge,
    tokens_BL: torch.Tensor,
    hooks: Sequence[tuple[str, Any]] = (),
    cache: Any = None,
    last: bool = False,
    **inputs: Any,
) -> torch.Tensor:
    """Return the final normed vectors, (B, L, D), or (B, D) of the last position alone.

    Args:
        bridge: the model.
        tokens_BL: token ids.
        hooks: what is read or changed on the way; B is the number of rows that comes out.
        cache: keys and values of what came before, to which this forward's are appended; None =
            nothing came before, and nothing is kept.
        last: whether the last position is all that is wanted.
        inputs: what else the model is given: a mask, positions.
    """
    captured: list[torch.Tensor] = []

    def catch(h_BLD: torch.Tensor, hook: Any) -> torch.Tensor:
        captured.append(h_BLD[:, -1] if last else h_BLD)
        return h_BLD[:0]  # the unembedding is not the model's to do here

    with hooks_on(bridge, [*hooks, ("unembed.hook_in", catch)]):
        bridge(tokens_BL, past_key_values=cache, use_cache=cache is not None, **inputs)
    return captured[0]


def entering_block(block: int) -> str:
    """Return the name of the hook of what enters a block, before an edit at the block before; of
    one after the last, of what leaves the model's blocks.
    """
    return "blocks.0.hook_in" if block == 0 else f"blocks.{block - 1}.hook_out"


@contextmanager
def hooks_on(bridge: TransformerBridge, hooks: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Have forwards of the bridge call `hooks`, pairs of a hook's name and a function.

    As `bridge.hooks` does, which makes the table of all names several times for every forward: of
    a small model that takes as long as a few rows.

    Raises:
        KeyError: the model has no hook of that name.
    """
    points = _hook_points(bridge)
    bridge.context_level += 1
    try:
        for name, function in hooks:
            bridge.check_hooks_to_add(str(points[name].name))
            points[name].add_hook(function, level=bridge.context_level)
        yield
    finally:
        for name, _ in hooks:
            points[name].remove_hooks("fwd", level=bridge.context_level)
        bridge.context_level -= 1


def _hook_points(bridge: TransformerBridge) -> dict[str, HookPoint]:
    """Return all hooks by name, aliases included; the bridge makes the table anew each time."""
    attribute = "steerlens_hook_points"
    if attribute not in bridge.__dict__:
        # Plainly: the bridge's own setattr would look for the attribute in the model.
        object.__setattr__(bridge, attribute, bridge.hook_dict)
    return bridge.__dict__[attribute]


def left_padded(n_padding_B: torch.Tensor, past: int, length: int) -> dict[str, Any]:
    """Return the mask (B, past + length) and positions (B, length) of rows padded on the left.

    Args:
        n_padding_B: how many tokens of padding each row begins with.
        past: how many positions came before.
        length: how many are to be run.
    """
    position_L = torch.arange(past + length, device=n_padding_B.device)
    mask_BL = position_L >= n_padding_B[:, None]
    position_BL = (position_L - n_padding_B[:, None]).clamp(min=0)
    return {"attention_mask": mask_BL.long(), "position_ids": position_BL[:, past:]}


def new_cache(bridge: TransformerBridge) -> Any:
    """Return an empty cache of keys and values.

    Raises:
        SteerlensError: the model remembers its past by something else, too.
    """
    if not is_expandable(bridge):
        hf_model: Any = bridge.original_model
        raise SteerlensError(
            f"a model of type {hf_model.config.model_type} remembers its past by more than keys "
            "and values, which steerlens can't expand to rows yet."
        )
    return empty_cache(bridge)


def is_expandable(bridge: TransformerBridge) -> bool:
    """Return whether the model remembers its past by keys and values alone."""
    from transformers.cache_utils import DynamicLayer

    return all(isinstance(layer, DynamicLayer) for layer in empty_cache(bridge).layers)


def empty_cache(bridge: TransformerBridge) -> Any:
    """Return what the model remembers its past by, before there is any."""
    from transformers import DynamicCache

    hf_model: Any = bridge.original_model
    return DynamicCache(config=hf_model.config)


def copied(cache: Any) -> Any:
    """Return the same keys and values, which may grow apart from here."""
    shallow = copy.copy(cache)
    shallow.layers = [copy.copy(layer) for layer in cache.layers]
    return shallow


def joined(caches: Sequence[Any]) -> Any:
    """Return the keys and values of all rows in one cache."""
    cache = copied(caches[0])
    for layer, *parts in zip(cache.layers, *(part.layers for part in caches), strict=True):
        if layer.is_initialized:
            layer.keys = torch.cat([part.keys for part in parts])
            layer.values = torch.cat([part.values for part in parts])
    return cache


def rows_of_one(cache: Any, n_rows: int, first_block: int) -> Any:
    """Return a copy of a cache of one row that has `n_rows` from block `first_block` on.

    They are views: a forward appends the next token's keys and values to a copy of its own.
    """
    cache = copied(cache)
    for layer in cache.layers[first_block:]:
        if layer.is_initialized and layer.keys.numel():
            layer.keys = layer.keys.expand(n_rows, -1, -1, -1)
            layer.values = layer.values.expand(n_rows, -1, -1, -1)
    return cache
