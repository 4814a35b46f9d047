"""How probable given continuations of contexts are under an edit, many at a time.

The edit takes a context for a prompt and a continuation for tokens that were generated after it, so
that `steer.positions` means what it means where texts are generated: a continuation has the
log-probability with which the steered model would draw it, token by token.

Whatever of a context stands before its first edited position doesn't depend on the edit: its keys
and values are computed once and serve one edit after another, as far as memory allows. So with
`positions=last` only a context's last token and the continuations are run for each edit. The
continuations of one context go on from the same keys and values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from steerlens.engine.intervention import looks_back
from steerlens.engine.intervention.hooks import Edits
from steerlens.engine.memory import batches
from steerlens.engine.padding import next_multiple
from steerlens.engine.ranks import log_probability_and_greedy
from steerlens.engine.subject import Subject
from steerlens.engine.subject.forward import (
    copied,
    final_vectors,
    left_padded,
    new_cache,
)
from steerlens.errors import SteerlensError

LENGTHS = 8
"""Contexts are padded on the left to a multiple of so many tokens."""

TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 16384
"""Tokens in a batch at most: contexts, each as often as it has continuations, and these."""

EditsOf = Callable[[Sequence[int]], Edits]
"""Makes the edits of a batch of rows, whose contexts have so many tokens."""


class Pair(NamedTuple):
    """Token ids of a context and of what continues it, neither empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Continued(NamedTuple):
    """What a continuation is for the model."""

    log_probability: float
    """Of all its tokens given the context, in nats."""
    is_greedy: bool
    """Whether greedy decoding would write it."""


class Continuations:
    """Pairs of contexts and continuations that are scored under one edit after another."""

    def __init__(self, subject: Subject, pairs: Sequence[Pair], memory_budget: int) -> None:
        """Plan the batches; contexts that are too long for the model lose their first tokens.

        Args:
            subject: model and SAE.
            pairs: what is scored.
            memory_budget: bytes, of which a half is for keys and values that stay.

        Raises:
            SteerlensError: a continuation alone is too long for the model.
        """
        self._subject = subject
        n_ctx = int(subject.lm.bridge.cfg.n_ctx)
        self.pairs = [_that_fits(pair, n_ctx, subject.lm.name) for pair in pairs]
        self._pairs_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, pair in enumerate(self.pairs):
            self._pairs_of[pair.context].append(index)
        self._by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for context in self._pairs_of:
            self._by_length[self._padded_length(context, n_ctx)].append(context)
        self._budget = memory_budget
        self._beginnings: dict[tuple[int, int, int], Any] = {}
        self._bytes_left = memory_budget // 2

    @torch.no_grad()
    def score(
        self, edits_of: EditsOf, progress: Callable[[int], None] = lambda n_pairs_scored: None
    ) -> list[Continued]:
        """Return what each continuation is under the edit, in the order of the pairs.

        Args:
            edits_of: gives each batch its edits.
            progress: called with the number of pairs just scored.
        """
        scored: dict[int, Continued] = {}
        for length, contexts in sorted(self._by_length.items(), reverse=True):
            n_pairs = [len(self._pairs_of[context]) for context in contexts]
            size = self._contexts_at_once(length + self._longest(contexts), max(n_pairs))

            def run_batch(
                part: slice,
                _full: int,
                length: int = length,
                contexts: Sequence[tuple[int, ...]] = contexts,
            ) -> None:
                at = (length, part.start, part.stop)
                scored.update(self._score_batch(at, contexts[part], edits_of))

            start = 0
            for n_contexts in batches(len(contexts), size, run_batch):
                progress(sum(n_pairs[start : start + n_contexts]))
                start += n_contexts
        return [scored[index] for index in range(len(self.pairs))]

    def _padded_length(self, context: tuple[int, ...], n_ctx: int) -> int:
        """Return how long a context is with its padding, which a temporal SAE would see."""
        length = len(context)
        if looks_back(self._subject.sae):
            return length
        most = n_ctx - self._longest([context]) + 1
        return max(length, min(next_multiple(length, LENGTHS), most))

    def _longest(self, contexts: Sequence[tuple[int, ...]]) -> int:
        """Return how many tokens the longest continuation of these contexts has."""
        indices = (index for context in contexts for index in self._pairs_of[context])
        return max(len(self.pairs[index].continuation) for index in indices)

    def _contexts_at_once(self, length: int, n_pairs: int) -> int:
        """Return how many contexts make a batch, with at most `n_pairs` continuations each and
        `length` tokens with the longest.
        """
        lm = self._subject.lm
        cfg = lm.bridge.cfg
        tokens = TOKENS_ON_CPU if lm.device.type == "cpu" else TOKENS_ON_GPU
        # Keys and values twice, because a longer copy is made; the SAE's activations thrice.
        numbers = 2 * lm.kv_numbers * lm.n_layers + 5 * (cfg.d_mlp or 4 * cfg.d_model)
        numbers += 16 * cfg.d_model + 3 * self._subject.d_sae
        per_token = lm.dtype.itemsize * numbers
        fit = min(tokens, self._budget // 2 // per_token)
        return max(1, fit // (length * n_pairs))

    def _score_batch(
        self,
        at: tuple[int, int, int],
        contexts: Sequence[tuple[int, ...]],
        edits_of: EditsOf,
    ) -> dict[int, Continued]:
        """Return what continues some contexts, by the index of the pair.

        `at` is the contexts' padded length and where they stand among those of that length.
        """
        lm, length = self._subject.lm, at[0]
        bridge, device = lm.bridge, lm.device
        n_padding_B = torch.tensor([length - len(context) for context in contexts], device=device)
        # Masked, so that any token will do.
        rows = [[context[0]] * (length - len(context)) + [*context] for context in contexts]
        tokens_BL = torch.tensor(rows, device=device)
        edits = edits_of([len(context) for context in contexts])
        edits.is_prompt = True
        first = edits.first_position(length)
        cache = self._beginning(at, first, tokens_BL, n_padding_B)
        inputs = left_padded(n_padding_B, first, length - first)
        h_BD = final_vectors(
            bridge, tokens_BL[:, first:], edits.hooks(), cache, last=True, **inputs
        )
        context_of = [row for row, ids in enumerate(contexts) for _ in self._pairs_of[ids]]
        indices = [index for ids in contexts for index in self._pairs_of[ids]]
        continuations = [self.pairs[index].continuation for index in indices]
        # What the context itself says of the first token, then the rest of the longer ones.
        vectors = [h_BD[row, None] for row in context_of]
        longer = [row for row, ids in enumerate(continuations) if len(ids) > 1]
        if longer:
            row_N = torch.tensor([context_of[row] for row in longer], device=device)
            cache.reorder_cache(row_N)
            edits.select(row_N)
            edits.is_prompt = False
            n_tokens = max(len(continuations[row]) for row in longer) - 1
            padded = [
                [*ids[:-1], *[0] * (n_tokens - len(ids) + 1)]
                for ids in (continuations[row] for row in longer)
            ]
            inputs = left_padded(n_padding_B[row_N], length, n_tokens)
            rest_NTD = final_vectors(
                bridge, torch.tensor(padded, device=device), edits.hooks(), cache, **inputs
            )
            for row, rest_TD in zip(longer, rest_NTD, strict=True):
                n_rest = len(continuations[row]) - 1
                vectors[row] = torch.cat([vectors[row], rest_TD[:n_rest]])
        targets = [torch.tensor(ids, device=h_BD.device) for ids in continuations]
        log_probability_M, greedy_M = log_probability_and_greedy(
            lm.head, torch.cat(vectors), torch.cat(targets)
        )
        lengths = [len(ids) for ids in continuations]
        parts = zip(log_probability_M.double().split(lengths), greedy_M.split(lengths), strict=True)
        return {
            index: Continued(float(part_T.sum()), bool(greedy_T.all()))
            for index, (part_T, greedy_T) in zip(indices, parts, strict=True)
        }

    def _beginning(
        self,
        at: tuple[int, int, int],
        first: int,
        tokens_BL: torch.Tensor,
        n_padding_B: torch.Tensor,
    ) -> Any:
        """Return a cache of the keys and values before position `first`, of which every edit has
        its own copy.
        """
        if first == 0:
            return new_cache(self._subject.lm.bridge)
        if at not in self._beginnings:
            cache = new_cache(self._subject.lm.bridge)
            inputs = left_padded(n_padding_B, 0, first)
            final_vectors(
                self._subject.lm.bridge, tokens_BL[:, :first], (), cache, last=True, **inputs
            )
            size = sum(
                part.numel() * part.element_size()
                for layer in cache.layers
                if layer.is_initialized
                for part in (layer.keys, layer.values)
            )
            if size > self._bytes_left:
                return cache
            self._bytes_left -= size
            self._beginnings[at] = cache
        return copied(self._beginnings[at])


def _that_fits(pair: Pair, n_ctx: int, model: str) -> Pair:
    """Return the pair with as much of the context's end as the model has room for; the last token
    of the continuation is never run.
    """
    n_tokens = len(pair.continuation)
    if n_tokens > n_ctx:
        raise SteerlensError(
            f"a continuation has {n_tokens} tokens; {model} takes {n_ctx} with what comes before."
        )
    return Pair(pair.context[-(n_ctx + 1 - n_tokens) :], pair.continuation)
