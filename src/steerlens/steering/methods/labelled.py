"""Labelled texts as tokens, and the vectors of all their tokens at the SAE's hook.

A text that several concepts share, as AxBench's negatives are shared, is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from steerlens.engine.activations.stream import (
    TOKENS_ON_CPU,
    TOKENS_ON_GPU,
    residuals,
    similar_length,
)
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.subject.model import with_bos
from steerlens.engine.subject.site import is_transcoder
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.data.concept_sets import Concept, LabelledText
    from steerlens.engine.subject import Subject

MAX_TOKENS = 1024
"""Longer texts are cut (AxBench)."""


class Tokens(NamedTuple):
    """A text of L tokens."""

    ids: list[int]
    n_prefix: int
    """The first tokens, which are every text's (BOS, the head of the chat template): no method
    looks at their vectors or changes them."""
    n_prompt: int
    """Tokens of prefix and prompt, whose probability is nobody's goal."""


def tokenised(subject: Subject, example: LabelledText, chat_template: bool = False) -> Tokens:
    """Return tokens of an example; with a chat template the answer is the model's turn, without its
    end.

    Raises:
        SteerlensError: for a tokenizer without a chat template where one is asked for, and for a
            text without a token of its own.
    """
    tokenizer = subject.lm.tokenizer
    if chat_template:
        other_request = f"{example.prompt[:1]}.{example.prompt}"
        prompt, neutral = (
            subject.to_tokens(request, chat_template=True)[0].tolist()
            for request in (example.prompt, other_request)
        )
        same = zip(prompt, neutral, strict=False)
        n_prefix = next((i for i, (a, b) in enumerate(same) if a != b), len(prompt))
        ids = prompt + list(tokenizer(example.text, add_special_tokens=False)["input_ids"])
    else:
        prompt, ids = (
            with_bos(tokenizer(text, add_special_tokens=False)["input_ids"], subject.bos)
            for text in (example.prompt, example.prompt + example.text)
        )
        n_prefix = subject.n_uncounted
    ids = ids[: min(MAX_TOKENS, int(subject.lm.bridge.cfg.n_ctx))]
    if len(ids) <= n_prefix:
        raise SteerlensError(f"the text {(example.prompt + example.text)[:40]!r} has no token.")
    return Tokens(ids, n_prefix, max(n_prefix, min(len(prompt), len(ids) - 1), 1))


@dataclass(frozen=True)
class Labelled:
    """The texts of C concepts: N different ones, and which are whose."""

    texts: list[Tokens]
    positives: list[list[int]]
    """For each concept, places in `texts`."""
    negatives: list[list[int]]

    def __len__(self) -> int:
        return len(self.positives)

    def of(self, concept: int) -> list[int]:
        """Return places of all texts of a concept, positives first."""
        return [*self.positives[concept], *self.negatives[concept]]

    def alike(self) -> list[list[int]]:
        """Return concepts in groups of equally many positives and negatives, which train in
        step.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for concept in range(len(self)):
            size = (len(self.positives[concept]), len(self.negatives[concept]))
            groups.setdefault(size, []).append(concept)
        return list(groups.values())


def label(
    subject: Subject,
    concepts: Sequence[Concept],
    chat_template: bool = False,
    test: bool = False,
) -> Labelled:
    """Return the texts of `concepts` to train on, or to test on."""
    index_of: dict[LabelledText, int] = {}
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for concept in concepts:
        examples_of = (
            (concept.test_positives, concept.test_negatives)
            if test
            else (concept.positives, concept.negatives)
        )
        for side, examples in zip(sides, examples_of, strict=True):
            side.append([index_of.setdefault(example, len(index_of)) for example in examples])
    return Labelled([tokenised(subject, example, chat_template) for example in index_of], *sides)


@dataclass(frozen=True)
class TokenVectors:
    """The vectors at the SAE's hook of all tokens of N texts, text after text."""

    x_TD: torch.Tensor
    """float32."""
    starts: list[int]
    """Where each text begins, and where the last ends: N + 1."""
    n_prefix: list[int]
    """How many first tokens of each text are prefix, which only `whole` gives."""

    def __len__(self) -> int:
        return len(self.n_prefix)

    def of(self, texts: Sequence[int]) -> torch.Tensor:
        """Return, as (T, D), the vectors of all tokens of some texts, without their prefixes."""
        return torch.cat([self.whole(text)[self.n_prefix[text] :] for text in texts])

    def whole(self, text: int) -> torch.Tensor:
        """Return, as (L, D), the vectors of a text, prefix included."""
        return self.x_TD[self.starts[text] : self.starts[text + 1]]

    @cached_property
    def length_N(self) -> torch.Tensor:
        """How many tokens each text has, float32; without prefix, as all that follows."""
        starts, n_prefix = torch.tensor(self.starts), torch.tensor(self.n_prefix)
        return (starts[1:] - starts[:-1] - n_prefix).float().to(self.x_TD.device)

    @cached_property
    def sum_ND(self) -> torch.Tensor:
        """The sum of each text's vectors."""
        starts = torch.tensor(self.starts)
        begins = starts[:-1] + torch.tensor(self.n_prefix)
        # A segment for every prefix and one for every text.
        ends = torch.cat([torch.stack([starts[:-1], begins], dim=1).flatten(), starts[-1:]])
        sums = torch.segment_reduce(self.x_TD, "sum", offsets=ends.to(self.x_TD.device), axis=0)
        return sums[1::2]


@torch.no_grad()
def token_vectors(
    subject: Subject,
    texts: Sequence[Tokens],
    memory_budget: int,
) -> TokenVectors:
    """Read `texts` once, in batches of similar length, as far as the SAE's hook.

    Args:
        subject: model and SAE.
        texts: N texts.
        memory_budget: bytes for one batch's activations; the result isn't counted.

    Raises:
        SteerlensError: for a transcoder, whose directions are written elsewhere than it reads.
    """
    if is_transcoder(subject.sae):
        raise SteerlensError(
            f"{subject.name} reads {subject.site.read} and writes {subject.site.write}: supervised "
            "directions need an SAE that writes where it reads."
        )
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text.ids))
    x_TD = torch.empty(
        starts[-1], subject.sae.cfg.d_in, device=subject.lm.device_of_block(subject.layer)
    )
    at_most = TOKENS_ON_CPU if subject.lm.device.type == "cpu" else TOKENS_ON_GPU
    cfg = subject.lm.bridge.cfg
    pieces = [np.asarray(text.ids, dtype=np.int32) for text in texts]
    per_token = 4 * (4 * (cfg.d_mlp or 4 * cfg.d_model) + 16 * cfg.d_model)
    tokens_at_once = rows_that_fit(memory_budget, per_token, at_most)

    def read(rows: slice, _full: int) -> None:
        group_rows = group[rows]
        vectors, _ = residuals([subject], [pieces[i] for i in group_rows])
        for row_LD, i in zip(vectors[0], group_rows, strict=True):
            x_TD[starts[i] : starts[i + 1]] = row_LD[: len(pieces[i])]

    for group in similar_length(range(len(pieces)), pieces, tokens_at_once):
        for _ in batches(len(group), len(group), read):
            pass
    if not torch.isfinite(x_TD).all():
        raise SteerlensError(
            f"layer {subject.layer} has NaN or infinite vectors in {subject.lm.dtype}; use "
            "dtype=float32."
        )
    return TokenVectors(x_TD, starts, [text.n_prefix for text in texts])
