"""What prompts leave in a model without an edit, from which many texts go on: run once for all of
them, those that are generated and those that are read again.

A prompt is padded on the left to a length that depends on itself alone, so that texts after prompts
of different lengths share batches. What it leaves is the same to the last bit whatever is run
beside it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from steerlens.engine.padding import ROWS, with_rows
from steerlens.engine.subject.forward import copied, final_vectors, joined, left_padded, new_cache

if TYPE_CHECKING:
    from steerlens.engine.subject import LoadedModel

LENGTHS = 8
"""Prompts are padded to a multiple of so many tokens."""


class PromptState(NamedTuple):
    """What forwards of P prompts without an edit have left."""

    cache: Any
    """Keys and values (P, ...) of the positions before the first that is run for each text."""
    plain_PV: torch.Tensor | None
    """Logits after the prompts; None where nobody has asked."""


PromptStates = dict[Hashable, PromptState]
"""The state of each of the latest prompts, those that were asked for longest ago first."""


def prompt_state(
    lm: LoadedModel,
    prompts: Sequence[Sequence[int]],
    length: int,
    first: int,
    with_logits: bool,
    states: PromptStates,
    n_bytes: int,
) -> PromptState:
    """Return what prompts leave before the position `first`, and their logits if they are wanted.

    Args:
        lm: the model.
        prompts: token ids of P prompts, none empty.
        length: how long they are with their padding.
        first: the first position that is not run, or run for the logits alone.
        with_logits: whether they are wanted.
        states: of earlier prompts, which aren't run again; these become the latest.
        n_bytes: how much memory `states` may take.

    Raises:
        SteerlensError: the model remembers its past by more than keys and values.
    """
    device = lm.device
    keys: list[Hashable] = [(lm.bridge, length, first, *prompt) for prompt in prompts]
    of_prompts = {key: state for key in keys if (state := states.pop(key, None))}
    missing = [
        index
        for index, key in enumerate(keys)
        if key not in of_prompts or (with_logits and of_prompts[key].plain_PV is None)
    ]
    tokens_PL, n_padding_P = left_filled(prompts, length, device)
    # Always as many at once, because how many there are depends on the batch. On a CPU each by
    # itself: its time goes by tokens, and whoever plays has a single prompt.
    at_once = 1 if device.type == "cpu" else ROWS
    for start in range(0, len(missing), at_once):
        indices = missing[start : start + at_once]
        tokens_RL = with_rows(tokens_PL[indices], at_once)
        n_padding_R = with_rows(n_padding_P[indices], at_once)
        before, plain_RV = new_cache(lm.bridge), None
        if first > 0:
            inputs = left_padded(n_padding_R, 0, first)
            final_vectors(lm.bridge, tokens_RL[:, :first], (), before, last=True, **inputs)
        if with_logits:
            inputs = left_padded(n_padding_R, first, length - first)
            h_RD = final_vectors(
                lm.bridge, tokens_RL[:, first:], (), copied(before), last=True, **inputs
            )
            plain_RV = lm.head.finish(lm.head.logits(h_RD.to(lm.head.device)))
        for row, index in enumerate(indices):
            cache = copied(before)
            cache.reorder_cache(torch.tensor([row], device=device))
            plain_1V = None if plain_RV is None else plain_RV[row, None].clone()
            of_prompts[keys[index]] = PromptState(cache, plain_1V)
    states.update(of_prompts)
    excess = sum(map(_state_bytes, states.values())) - n_bytes
    while excess > 0:
        excess -= _state_bytes(states.pop(next(iter(states))))
    every = [of_prompts[key] for key in keys]
    plain = [state.plain_PV for state in every if state.plain_PV is not None]
    return PromptState(
        joined([state.cache for state in every]), torch.cat(plain) if with_logits else None
    )


def left_filled(
    prompts: Sequence[Sequence[int]], length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (P, length) of prompts after their padding, which is masked, so that any
    token will do; and (P,) how long that is.
    """
    rows = [[prompt[0]] * (length - len(prompt)) + [*prompt] for prompt in prompts]
    n_padding_P = torch.tensor([length - len(prompt) for prompt in prompts])
    return torch.tensor(rows, device=device), n_padding_P.to(device)


def _state_bytes(state: PromptState) -> int:
    layers = (layer for layer in state.cache.layers if layer.is_initialized)
    parts = [part for layer in layers for part in (layer.keys, layer.values)]
    return sum(part.nbytes for part in [*parts, state.plain_PV] if part is not None)
