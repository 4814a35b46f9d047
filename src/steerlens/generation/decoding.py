"""Batched decoding with a key-value cache, every row steered in its own way.

Prompts of different length are padded on the left. What comes before the first edited position is
run once for each prompt, and its keys and values are handed to the rows. Finished rows leave.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from steerlens.errors import SteerlensError
from steerlens.generation.sampling import Noise, Sampling, next_tokens
from steerlens.generation.stopping import Stopping
from steerlens.intervention.hooks import Edits
from steerlens.metrics.first_step import first_step_kl
from steerlens.subject import Subject


@dataclass
class Continuation:
    """What one row has produced."""

    token_ids: list[int] = field(default_factory=list)
    """New tokens only, a closing EOS included."""
    stopped_by: str = ""
    near_ties: int = 0
    """How many of its tokens rounding could have decided."""
    first_step_kl: float = 0.0
    """KL(steered || unsteered) of the first steered next-token distribution, in nats."""


@torch.no_grad()
def decode(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    prompt_B: torch.Tensor,
    hooks: Edits,
    seeds: Sequence[int],
    sampling: Sampling,
    stopping: Stopping,
    progress: Callable[[int], None] = lambda n: None,
) -> list[Continuation]:
    """Continues each row's prompt until `stopping` ends it.

    Args:
        subject: model and SAE.
        prompts: token ids of P prompts, none empty.
        prompt_B: (B,) which prompt each row continues.
        hooks: the edit, of as many rows.
        seeds: of each row.
        sampling: how tokens are drawn.
        stopping: when a text ends.
        progress: called with the number of tokens that have just been drawn.
    """
    forward = _Forward(subject, prompts)
    logits_BV, kl_B = forward.prompt(prompt_B, hooks)
    found = [Continuation(first_step_kl=kl) for kl in kl_B.tolist()]
    alive, noise = list(range(len(found))), Noise(seeds)
    while True:
        token_B, near_B = (column.tolist() for column in next_tokens(logits_BV, sampling, noise))
        progress(len(alive))
        going = []
        for row, (index, token, near) in enumerate(zip(alive, token_B, near_B, strict=True)):
            found[index].token_ids.append(token)
            found[index].near_ties += near
            reason = stopping.reason(found[index].token_ids)
            if reason:
                found[index].stopped_by = reason
            else:
                going.append(row)
        if not going:
            return found
        if len(going) < len(alive):
            rows = torch.tensor(going)
            for one in (forward, hooks, noise):
                one.select(rows)
            alive = [alive[row] for row in going]
            token_B = [token_B[row] for row in going]
        logits_BV, kl_B = forward.next(torch.tensor(token_B), hooks)
        if kl_B is not None:
            for index, kl in zip(alive, kl_B.tolist(), strict=True):
                found[index].first_step_kl = kl


class _Forward:
    """Forwards of a batch, with the keys and values of what came before."""

    def __init__(self, subject: Subject, prompts: Sequence[Sequence[int]]) -> None:
        self._subject = subject
        self._bridge = subject.lm.bridge
        self._length = max(map(len, prompts))
        n_padding = torch.tensor([self._length - len(prompt) for prompt in prompts])
        padding = subject.bos if subject.bos is not None else prompts[0][0]
        rows = [[padding] * (self._length - len(prompt)) + list(prompt) for prompt in prompts]
        self._tokens_PL = torch.tensor(rows, device=subject.lm.device)
        self._n_padding = n_padding.to(subject.lm.device)
        self._cache: Any = None

    def prompt(self, prompt_B: torch.Tensor, hooks: Edits) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, V) after each row's prompt, and the KL (B,) from the unsteered ones."""
        prompt_B = prompt_B.to(self._n_padding.device)
        first = hooks.first_position(self._length)
        self._cache = _new_cache(self._subject)
        hooks.is_prompt = True
        if first > 0:
            self._run(self._tokens_PL[:, :first], [])
        before = _copied(self._cache)
        plain_PV = self._run(self._tokens_PL[:, first:], []) if hooks.steers else None
        self._cache = before
        self._n_padding = self._n_padding[prompt_B]
        self._select_cache(prompt_B)
        steered_BV = self._run(self._tokens_PL[prompt_B][:, first:], hooks.hooks())
        if plain_PV is None:
            return steered_BV, torch.zeros(len(steered_BV))
        return steered_BV, _kl(hooks, steered_BV, plain_PV, prompt_B)

    def next(self, token_B: torch.Tensor, hooks: Edits) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (B, V) after one more token, and the KL if this is the first edited step."""
        tokens_B1 = token_B.to(self._n_padding.device)[:, None]
        hooks.is_prompt = False
        first = hooks.steers and hooks.fired == 0 and hooks.edits_new_tokens
        before = _copied(self._cache) if first else None
        logits_BV = self._run(tokens_B1, hooks.hooks())
        if before is None:
            return logits_BV, None
        after, self._cache = self._cache, before
        plain_BV = self._run(tokens_B1, [])
        self._cache = after
        return logits_BV, _kl(hooks, logits_BV, plain_BV)

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with these rows only."""
        rows = rows.to(self._n_padding.device)
        self._n_padding = self._n_padding[rows]
        self._select_cache(rows)

    def _select_cache(self, rows: torch.Tensor) -> None:
        for layer in self._cache.layers:
            if layer.is_initialized and layer.keys.numel():
                layer.keys = layer.keys[rows.to(layer.keys.device)]
                layer.values = layer.values[rows.to(layer.values.device)]

    def _run(self, tokens_BL: torch.Tensor, hooks: list[tuple[str, Any]]) -> torch.Tensor:
        """Logits (B, V) of the last position; the cache grows."""
        past, length = int(self._cache.get_seq_length()), tokens_BL.shape[1]
        kwargs: dict[str, Any] = {}
        if self._n_padding.any():
            place_L = torch.arange(past + length, device=tokens_BL.device)
            mask_BL = place_L >= self._n_padding[:, None]
            place_BL = (place_L - self._n_padding[:, None]).clamp(min=0)
            kwargs = {"attention_mask": mask_BL.long(), "position_ids": place_BL[:, past:]}
        seen: list[torch.Tensor] = []

        def catch(h_BLD: torch.Tensor, hook: Any) -> torch.Tensor:
            seen.append(h_BLD[:, -1])
            return h_BLD[:0]  # only the last position's logits are wanted

        self._bridge.run_with_hooks(
            tokens_BL,
            fwd_hooks=[*hooks, ("unembed.hook_in", catch)],
            past_key_values=self._cache,
            use_cache=True,
            **kwargs,
        )
        head = self._subject.lm.head
        return head.finish(head.logits(seen[0].to(head.device)))


def _kl(
    hooks: Edits,
    steered_BV: torch.Tensor,
    unsteered_PV: torch.Tensor,
    prompt_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Exactly 0 in rows that aren't steered, where only rounding differs."""
    kl_B = first_step_kl(steered_BV, unsteered_PV, prompt_B)
    return kl_B.masked_fill_((hooks.factor_B == 0).to(kl_B.device), 0)


def _new_cache(subject: Subject) -> Any:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    hf_model: Any = subject.lm.bridge.original_model
    cache = DynamicCache(config=hf_model.config)
    if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        raise SteerlensError(
            f"{subject.lm.name} ({hf_model.config.model_type}) remembers its past by more than "
            "keys and values, which steerlens can't expand to rows yet."
        )
    return cache


def _copied(cache: Any) -> Any:
    """The same keys and values, which may grow apart from here."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other
