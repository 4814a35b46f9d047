"""The run's corpus, read once for all that ask for it: methods, layers, and later runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerlens.config.registry import ScoreConfig
from steerlens.data.corpus import texts
from steerlens.data.corpus.sequences import pieces
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    import numpy as np

    from steerlens.config.schema import CorpusConfig
    from steerlens.engine.activations import Activations
    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject

EXAMPLES = 100
"""Examples kept for each feature at least, so that methods share a pass."""


@dataclass
class PiecesFired(ScoreConfig):
    """What `features.min_examples` asks of a pass."""

    at_most: int = 1
    """Pieces are counted up to this many."""

    def corpus_pass(self) -> tuple[int | None, int]:
        """Return what the method needs of a pass over the corpus: (context length, examples)."""
        return None, self.at_most


logger = logging.getLogger(__name__)


def in_groups(
    subjects: Iterable[Subject], configs: Iterable[ScoreConfig], memory_budget: int
) -> Iterator[list[Subject]]:
    """Yield `subjects` in groups that read the corpus together: as many SAEs as fit in the budget.

    One by one where no method reads it. A group is emptied before the next is loaded, so that no
    more SAEs than one group's are in memory.
    """
    together = any(config.corpus_pass() for config in configs)
    group: list[Subject] = []
    for subject in subjects:
        group.append(subject)
        if not together or len(group) >= at_once(subject, memory_budget):
            del subject
            yield group
            group.clear()
    if group:
        yield group


def at_once(subject: Subject, memory_budget: int) -> int:
    """Return how many SAEs as large as this one fit in the budget."""
    size = sum(
        parameter.numel() * parameter.element_size() for parameter in subject.sae.parameters()
    )
    return max(1, memory_budget // size)


def read_corpus(
    subjects: Sequence[Subject],
    configs: Iterable[ScoreConfig],
    ctx: RunContext,
    details: bool = False,
) -> None:
    """Fill `ctx.cache.activations` with what `configs` need of `subjects` and isn't there yet.

    With `details`, also windows around the peaks, and histograms.
    """
    n_of_length: dict[int, int] = {}
    for config in configs:
        if request := config.corpus_pass():
            length = context_length(subjects[0], request[0], ctx)
            n_of_length[length] = max(n_of_length.get(length, EXAMPLES), request[1])
    for length, n_examples in n_of_length.items():
        finished = ctx.cache.activations
        missing = [subject for subject in subjects if (subject.hook_name, length) not in finished]
        for together in alike(missing):
            _read(together, length, n_examples, ctx, details)
            n_read = finished[together[0].hook_name, length].n_tokens
            tell_if_short(ctx, n_read, "corpus.n_tokens", ctx.corpus and ctx.corpus.n_tokens)


def alike(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Return `subjects` in groups that read the same pieces: with the same BOS and first
    position.
    """
    groups: dict[tuple[int | None, int], list[Subject]] = {}
    for subject in subjects:
        groups.setdefault((subject.bos, subject.n_uncounted), []).append(subject)
    return list(groups.values())


def cut_corpus(
    subject: Subject, corpus: CorpusConfig, length: int, n_tokens: int | None
) -> Iterator[np.ndarray]:
    """Return the corpus in pieces of at most `length` tokens, up to `n_tokens` that count."""
    documents = texts(corpus, subject.lm.transcript)
    return pieces(
        documents, subject.lm.tokenizer, length, subject.bos, n_tokens, subject.n_uncounted
    )


def context_length(subject: Subject, length_wanted: int | None, ctx: RunContext) -> int:
    """Return tokens in a piece: as asked, else the corpus's default, cut to what the model can
    take.
    """
    if ctx.corpus is None:
        raise SteerlensError("this score needs a corpus: corpus=embedded, say.")
    n_ctx = int(subject.lm.bridge.cfg.n_ctx)
    length = length_wanted or min(ctx.corpus.context_length, n_ctx)
    if not 2 <= length <= n_ctx:
        raise SteerlensError(
            f"context_length={length} is out of range: {subject.lm.name} takes 2 to {n_ctx} tokens."
        )
    return length


def activations_of(subject: Subject, length_wanted: int | None, ctx: RunContext) -> Activations:
    """Return what `read_corpus` has found for the subject."""
    return ctx.cache.activations[subject.hook_name, context_length(subject, length_wanted, ctx)]


def pieces_fired(subject: Subject, ctx: RunContext) -> np.ndarray:
    """Return, as (F,), in how many pieces of the run's corpus each feature fires, as far as
    examples are kept.

    The pieces are those of `corpus.context_length`, whatever a method of the run asks for, so that
    the same features are chosen for every method.
    """
    return (activations_of(subject, None, ctx).value_FN > 0).sum(axis=1)


def _read(
    subjects: Sequence[Subject], length: int, n_examples: int, ctx: RunContext, details: bool
) -> None:
    from steerlens.engine.activations import activations_bytes, read_activations
    from steerlens.engine.activations.stream import activations

    assert ctx.corpus is not None
    of_pass = {"corpus": ctx.corpus_key(), "context_length": length, "n_examples": n_examples}
    if details:
        of_pass["details"] = True
    keys = {subject.hook_name: {**subject.key, **of_pass} for subject in subjects}

    def stored(subject: Subject, name: str) -> Activations | None:
        store, key = ctx.store, keys[subject.hook_name]
        if store is None or store.load(key, name) is None:  # not there, or damaged
            return None
        return read_activations(store.folder(key) / name)

    unread: list[Subject] = []
    for subject in subjects:
        if finished := stored(subject, FINISHED):
            ctx.cache.activations[subject.hook_name, length] = finished
        else:
            unread.append(subject)
    if not unread:
        return

    def save(parts: Sequence[Activations], name: str = BEGUN) -> None:
        for subject, part in zip(unread, parts, strict=True):
            if ctx.store:
                ctx.store.keep(keys[subject.hook_name], name, activations_bytes(part))

    begun = [part for subject in unread if (part := stored(subject, BEGUN))]
    # They were written together; a kill between two of them leaves different ones.
    together = len(begun) == len(unread) and len({part.n_tokens for part in begun}) == 1
    cut = cut_corpus(unread[0], ctx.corpus, length, ctx.corpus.n_tokens)
    layers = ", ".join(str(subject.layer) for subject in unread)
    with ctx.task(ctx.corpus.n_tokens, f"corpus, layer {layers}", "tokens") as advance:
        tallies = activations(
            unread,
            cut,
            n_examples,
            ctx.memory_budget,
            advance,
            begun=begun if together else (),
            save=save,
            details=details,
        )
    save(tallies, FINISHED)
    for subject, activations_of_one in zip(unread, tallies, strict=True):
        ctx.cache.activations[subject.hook_name, length] = activations_of_one
        if ctx.store:
            (ctx.store.folder(keys[subject.hook_name]) / BEGUN).unlink(missing_ok=True)


FINISHED, BEGUN = "activations.safetensors", "begun.safetensors"


def tell_if_short(ctx: RunContext, n_read: int, key: str, n_asked: int | None) -> None:
    """Say that the corpus has fewer tokens than the setting `key` asks for."""
    assert ctx.corpus is not None
    if n_asked is not None and n_read < n_asked:
        logger.warning(
            "the corpus %s has %s tokens, fewer than %s=%s: all of it was read.",
            ctx.corpus.path or ctx.corpus.name,
            f"{n_read:,}",
            key,
            f"{n_asked:,}",
        )
