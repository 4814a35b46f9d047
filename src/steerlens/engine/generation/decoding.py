"""Batched decoding with a key-value cache, every row steered in its own way.

Prompts are padded on the left, to a length that depends on the prompt alone. What comes before the
first edited position is run once for each prompt, and its keys and values are handed to the rows.
Finished rows leave as soon as the batch is padded to fewer without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from steerlens.engine.generation.first_step import first_step_kl
from steerlens.engine.generation.sampling import Noise, Sampling, next_tokens
from steerlens.engine.generation.stopping import Stopping
from steerlens.engine.intervention import looks_back
from steerlens.engine.intervention.hooks import Edits
from steerlens.engine.padding import next_multiple, padded, with_rows
from steerlens.engine.prompts import LENGTHS, PromptStates, left_filled, prompt_state
from steerlens.engine.subject import Subject
from steerlens.engine.subject.forward import copied, entering_block, final_vectors, left_padded
from steerlens.errors import SteerlensError


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
    relative_dose: float | None = 0.0
    """Norm of the change / norm of the vector that it changed, the mean over edited positions; None
    of an edit that isn't of one vector."""
    vectors: list[torch.Tensor] = field(default_factory=list)
    """Final normed vectors, (D,), that its tokens were drawn from, where they are wanted."""
    entering: list[torch.Tensor] = field(default_factory=list)
    """What the token before each of its tokens brought to the first block that an edit can change,
    (D,): the same without the edit. Where they are wanted, and have been looked at."""


def padded_length(subject: Subject, length: int, max_new_tokens: int) -> int:
    """Return how long a prompt of `length` tokens is with its padding, as far as the context goes.

    A temporal SAE looks back and would see it, so prompts are not padded for one.
    """
    if looks_back(subject.sae):
        return length
    most = int(subject.lm.bridge.cfg.n_ctx) - max_new_tokens
    return max(length, min(next_multiple(length, LENGTHS), most))


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
    full: int | None = None,
    watch: Callable[[Sequence[Continuation]], None] | None = None,
    keep_vectors: bool = False,
    states: PromptStates | None = None,
    state_bytes: int = 0,
) -> list[Continuation]:
    """Continue each row's prompt until `stopping` ends it.

    What a row gives doesn't depend on the others, if all prompts have the same `padded_length`.

    Args:
        subject: model and SAE.
        prompts: token ids of P prompts, none empty.
        prompt_B: (B,) which prompt each row continues.
        hooks: the edit, of as many rows.
        seeds: of each row.
        sampling: how tokens are drawn.
        stopping: when a text ends.
        progress: called with the number of tokens that have just been drawn.
        full: how many rows a full batch has; None = as many as this one.
        watch: called with all rows after each of their tokens; what it raises ends the batch.
        keep_vectors: whether texts have their `vectors` and what is `entering`.
        states: of prompts that have been run before; None = every prompt is run.
        state_bytes: how much memory `states` may take.

    Raises:
        SteerlensError: logits overflow in the run's dtype.
    """
    full, device = full or len(prompt_B), subject.lm.device
    continuations = [Continuation() for _ in prompt_B]
    # The text of each row; None where a row is padding, or finished.
    texts: list[Continuation | None] = [*continuations]
    texts += [None] * (padded(len(continuations), full, device) - len(continuations))
    rows = [row if row < len(continuations) else 0 for row in range(len(texts))]
    hooks.select(torch.tensor(rows))
    noise = Noise([seeds[row] for row in rows])
    first_block = hooks.first_block if keep_vectors else None
    forward = _Forward(subject, prompts, stopping.max_new_tokens, first_block)
    logits_BV, kl_B = forward.prompt(
        with_rows(prompt_B, len(texts)), hooks, {} if states is None else states, state_bytes
    )
    while True:
        _refuse_overflow(subject, logits_BV, kl_B, texts, hooks)
        if kl_B is not None:
            for text, kl in zip(texts, kl_B.tolist(), strict=True):
                if text:
                    text.first_step_kl = kl
        _note_edits(texts, hooks)
        if keep_vectors:
            for text, h_D in zip(texts, forward.h_BD, strict=True):
                if text:
                    text.vectors.append(h_D)
        if forward.entering_BD is not None:
            for text, entering_D in zip(texts, forward.entering_BD, strict=True):
                if text:
                    text.entering.append(entering_D)
        token_B, near_B = (column.tolist() for column in next_tokens(logits_BV, sampling, noise))
        progress(sum(text is not None for text in texts))
        for row, (text, token, near) in enumerate(zip(texts, token_B, near_B, strict=True)):
            if text:
                text.token_ids.append(token)
                text.near_ties += near
                text.stopped_by = stopping.reason(text.token_ids) or ""
                if text.stopped_by:
                    texts[row] = None
        if watch:
            watch(continuations)
        going = [row for row, text in enumerate(texts) if text]
        if not going:
            return continuations
        n_rows = padded(len(going), full, device)
        if n_rows < len(texts):
            ended = [row for row, text in enumerate(texts) if not text]
            rows = (going + ended)[:n_rows]
            for part in (forward, hooks, noise):
                part.select(torch.tensor(rows))
            texts = [texts[row] for row in rows]
            token_B = [token_B[row] for row in rows]
        logits_BV, kl_B = forward.next(torch.tensor(token_B), hooks)


def _note_edits(texts: Sequence[Continuation | None], hooks: Edits) -> None:
    """Write down how strongly each text that is still going has been edited so far."""
    if not hooks.steers:
        return
    factor_B = hooks.factor_B.tolist()
    dose_B = [None] * len(texts) if hooks.dose_B is None else hooks.dose_B.tolist()
    for text, factor, dose in zip(texts, factor_B, dose_B, strict=True):
        if text and factor != 0:
            text.relative_dose = dose


def _refuse_overflow(
    subject: Subject,
    logits_BV: torch.Tensor,
    kl_B: torch.Tensor | None,
    texts: Sequence[Continuation | None],
    hooks: Edits,
) -> None:
    """Refuse numbers that are none, of which no token can be drawn, in rows that are still going.

    Raises:
        SteerlensError: with the factor that was too large for the run's dtype.
    """
    # The largest is NaN where any is; -inf alone is a token that the model excludes.
    largest_B = logits_BV.amax(dim=-1).float().cpu()
    if kl_B is not None:
        largest_B = largest_B + kl_B.cpu()
    going_B = torch.tensor([text is not None for text in texts])
    overflown_B = going_B & ~torch.isfinite(largest_B)
    if overflown_B.any():
        factor = float(hooks.factor_B[overflown_B.nonzero()[0, 0]])
        # Numbers of 16 bits end at 65,504.
        factor_told = (
            f"the factor {factor:g}" if math.isfinite(factor) else "a factor that is infinite there"
        )
        raise SteerlensError(
            f"layer {subject.layer} gives NaN or infinite logits in {subject.lm.dtype} when it is "
            f"steered with {factor_told}; use dtype=float32 or smaller factors."
        )


class _Forward:
    """Forwards of a batch, with the keys and values of what came before."""

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        first_block: int | None = None,
    ) -> None:
        self._subject = subject
        self._prompts = prompts
        self._first_block = first_block
        self._bridge = subject.lm.bridge
        self._length = padded_length(subject, max(map(len, prompts)), max_new_tokens)
        self._n_padding = torch.empty(0)
        self._cache: Any = None
        self.h_BD = torch.empty(0)
        """Final normed vectors of the last forward with the edits."""
        self.entering_BD: torch.Tensor | None = None
        """What enters block `first_block` at the last position of the last forward with the edits;
        None where there is no such block."""

    def prompt(
        self, prompt_B: torch.Tensor, hooks: Edits, states: PromptStates, state_bytes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, V) after each row's prompt, and the KL (B,) from the unsteered ones."""
        lm, first = self._subject.lm, hooks.first_position(self._length)
        state = prompt_state(
            lm, self._prompts, self._length, first, hooks.steers, states, state_bytes
        )
        tokens_PL, n_padding_P = left_filled(self._prompts, self._length, lm.device)
        prompt_B = prompt_B.to(lm.device)
        self._cache, self._n_padding = state.cache, n_padding_P[prompt_B]
        self._cache.reorder_cache(prompt_B)
        hooks.is_prompt = True
        steered_BV = self._run_edited(tokens_PL[prompt_B][:, first:], hooks)
        if state.plain_PV is None:
            return steered_BV, torch.zeros(len(steered_BV))
        return steered_BV, _kl(hooks, steered_BV, state.plain_PV, prompt_B)

    def next(self, token_B: torch.Tensor, hooks: Edits) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits (B, V) after one more token, and the KL if this is the first edited
        step.
        """
        tokens_B1 = token_B.to(self._n_padding.device)[:, None]
        hooks.is_prompt = False
        first = hooks.steers and hooks.fired == 0 and hooks.edits_new_tokens
        before = copied(self._cache) if first else None
        logits_BV = self._run_edited(tokens_B1, hooks)
        if before is None:
            return logits_BV, None
        after, self._cache = self._cache, before
        plain_BV = self._run(tokens_B1, [])
        self._cache = after
        return logits_BV, _kl(hooks, logits_BV, plain_BV)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        rows = rows.to(self._n_padding.device)
        self._n_padding = self._n_padding[rows]
        self._cache.reorder_cache(rows)

    def _run_edited(self, tokens_BL: torch.Tensor, hooks: Edits) -> torch.Tensor:
        """Return logits (B, V) of the last position with the edits; the cache grows."""

        def look(x_BLD: torch.Tensor, hook: Any) -> None:
            self.entering_BD = x_BLD[:, -1].clone()  # of one position, whatever was run

        looks: list[tuple[str, Any]] = []
        if self._first_block is not None:  # first, because the edit may be at the same hook
            looks = [(entering_block(self._first_block), look)]
        self.h_BD = self._vectors(tokens_BL, [*looks, *hooks.hooks()])
        return self._logits(self.h_BD)

    def _run(self, tokens_BL: torch.Tensor, hooks: list[tuple[str, Any]]) -> torch.Tensor:
        """Return logits (B, V) of the last position; the cache grows."""
        return self._logits(self._vectors(tokens_BL, hooks))

    def _vectors(self, tokens_BL: torch.Tensor, hooks: list[tuple[str, Any]]) -> torch.Tensor:
        past = int(self._cache.get_seq_length())
        inputs = left_padded(self._n_padding, past, tokens_BL.shape[1])
        return final_vectors(self._bridge, tokens_BL, hooks, self._cache, last=True, **inputs)

    def _logits(self, h_BD: torch.Tensor) -> torch.Tensor:
        head = self._subject.lm.head
        return head.finish(head.logits(h_BD.to(head.device)))


def _kl(
    hooks: Edits,
    steered_BV: torch.Tensor,
    unsteered_PV: torch.Tensor,
    prompt_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the KL, exactly 0 in rows that aren't steered, where only rounding differs."""
    kl_B = first_step_kl(steered_BV, unsteered_PV, prompt_B)
    return kl_B.masked_fill_((hooks.factor_B == 0).to(kl_B.device), 0)
