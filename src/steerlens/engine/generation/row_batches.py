"""Rows of texts in batches: how many at once, and what of a finished batch becomes its table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from steerlens.config.schema import GenerationConfig, SteerConfig
from steerlens.config.steering import parse_stop
from steerlens.engine.cached_rows import GROUP
from steerlens.engine.generation.decoding import Continuation, decode, padded_length
from steerlens.engine.generation.sampling import Sampling
from steerlens.engine.generation.stopping import EOS, Stopping
from steerlens.engine.intervention import check_affine
from steerlens.engine.intervention.hooks import Edits, policy_named
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.engine.run_context import RunContext

ROWS_AT_ONCE = 512
"""More rows make nothing faster, and lose more when a run is killed."""

EditsOf = Callable[[pd.DataFrame, Sequence[int]], Edits]
"""The edits of a batch of rows, whose prompts have so many tokens."""

Watch = Callable[[pd.DataFrame], None]
"""Told the rows of a batch, with their texts as far as they have come, after each token."""


def tokenised(
    subject: Subject, prompts: Iterable[str], settings: GenerationConfig
) -> dict[str, list[int]]:
    """Return the token ids of every prompt.

    Raises:
        SteerlensError: one is too long for the model, with what is generated.
    """
    n_ctx = int(subject.lm.bridge.cfg.n_ctx)
    chat = settings.chat_template
    ids_of = {prompt: subject.to_tokens(prompt, chat)[0].tolist() for prompt in prompts}
    for prompt, ids in ids_of.items():
        if len(ids) + settings.max_new_tokens > n_ctx:
            raise SteerlensError(
                f"the prompt {prompt[:40]!r} has {len(ids)} tokens; with generation.max_new_tokens="
                f"{settings.max_new_tokens} more it doesn't fit in the {n_ctx} that "
                f"{subject.lm.name} takes."
            )
    return ids_of


def texts_in_batches(
    subject: Subject,
    missing: pd.DataFrame,
    prompts: Mapping[str, list[int]],
    steer: SteerConfig,
    settings: GenerationConfig,
    ctx: RunContext,
    edits_of: EditsOf,
    advance: Any,
    watch: Watch | None,
    note: Callable[[pd.DataFrame, Sequence[Continuation]], None] | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield the missing rows with their texts, a batch at a time.

    Args:
        subject: model and SAE.
        missing: rows that may share batches, each with its `seed`.
        prompts: token ids of each prompt.
        steer: which positions are edited.
        settings: how texts are continued.
        ctx: memory.
        edits_of: gives the edits of a batch.
        advance: told how many tokens were drawn, and how many won't be.
        watch: told the rows of a batch after each token.
        note: told the rows of a finished batch, with what their texts were made of.
    """
    check_affine(subject.sae, torch.randn(1, 4, subject.sae.cfg.d_in).to(subject.sae.W_dec))
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    stopping = Stopping(
        subject.lm.tokenizer, eos_ids(subject), parse_stop(settings.stop), settings.max_new_tokens
    )
    lengths = {
        prompt: padded_length(subject, len(ids), settings.max_new_tokens)
        for prompt, ids in prompts.items()
    }
    finished: list[pd.DataFrame] = []

    def run_batch(part: slice, full: int) -> None:
        batch = group.iloc[part]
        distinct = list(dict.fromkeys(batch["prompt"]))
        index_of = {prompt: index for index, prompt in enumerate(distinct)}
        seeds = batch["seed"].tolist()
        hooks = edits_of(batch, [len(prompts[prompt]) for prompt in batch["prompt"]])
        prompt_B = torch.tensor(batch["prompt"].map(index_of).tolist())

        def show(texts: Sequence[Continuation]) -> None:
            if watch:
                watch(_table(subject, batch.drop(columns=GROUP), prompts, texts))

        texts = decode(
            subject, [prompts[index] for index in distinct], prompt_B, hooks, seeds, sampling,
            stopping, advance, full, show if watch else None, note is not None,
            ctx.cache.prompt_states, ctx.prompt_bytes,
        )  # fmt: skip
        if note:
            note(batch, texts)
        unused = sum(settings.max_new_tokens - len(text.token_ids) for text in texts)
        advance(0, unused)
        finished.append(_table(subject, batch, prompts, texts))

    length_of = np.array([lengths[prompt] for prompt in missing["prompt"]])
    for length in np.unique(length_of).tolist():
        group = missing.loc[length_of == length]
        per_row = _bytes_per_row(subject, length + settings.max_new_tokens, steer.positions)
        size = rows_that_fit(ctx.memory_budget, per_row, ROWS_AT_ONCE)
        for _ in batches(len(group), settings.batch_size or size, run_batch):
            yield finished.pop()


def _table(
    subject: Subject,
    batch: pd.DataFrame,
    prompts: Mapping[str, list[int]],
    texts: Sequence[Continuation],
) -> pd.DataFrame:
    ids = [prompts[prompt] for prompt in batch["prompt"]]
    # Not every tokenizer knows of every EOS that it is a special token.
    read = [text.token_ids[: -1 if text.stopped_by == EOS else None] for text in texts]
    return batch.assign(
        text=_decoded(subject, ids, read),
        token_ids=[text.token_ids for text in texts],
        stopped_by=[text.stopped_by for text in texts],
        near_ties=[text.near_ties for text in texts],
        first_step_kl=[text.first_step_kl for text in texts],
        relative_dose=[text.relative_dose for text in texts],
    )


def _decoded(
    subject: Subject, prompts: Sequence[Sequence[int]], new: Sequence[Sequence[int]]
) -> list[str]:
    """Return the continuations: what the whole text has beyond the prompt's, so that a leading
    space stays where the tokenizer drops it at the beginning of a text.
    """

    def decoded(ids: Sequence[Sequence[int]]) -> list[str]:
        return subject.lm.tokenizer.batch_decode(
            [list(row) for row in ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    texts_whole = decoded([[*prompt, *ids] for prompt, ids in zip(prompts, new, strict=True)])
    before, alone = decoded(prompts), decoded(new)
    return [
        text[len(prompt) :] if text.startswith(prompt) else text_alone
        for text, prompt, text_alone in zip(texts_whole, before, alone, strict=True)
    ]


def eos_ids(subject: Subject) -> set[int]:
    """Return the tokens that end a text: of the tokenizer and of the model's settings, where chat
    models have their end of turn.
    """
    hf_model: Any = subject.lm.bridge.original_model
    of_generation: Any = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    of_tokenizer: Any = subject.lm.tokenizer.eos_token_id
    ids = [of_tokenizer, *(of_generation if isinstance(of_generation, list) else [of_generation])]
    return {int(token) for token in ids if token is not None}


def _bytes_per_row(subject: Subject, length: int, positions: str) -> int:
    """Return the memory that one more row takes at its peak, a generous estimate."""
    cfg, lm = subject.lm.bridge.cfg, subject.lm
    # Twice, because a longer copy is made at every step; thrice the logits.
    keys_values = 2 * lm.kv_numbers * length * lm.n_layers
    edited = length if policy_named(positions).of_prompt is None else 1
    block = 4 * (cfg.d_mlp or 4 * cfg.d_model) + 16 * cfg.d_model
    return lm.dtype.itemsize * (
        keys_values + 3 * lm.head.d_vocab + edited * (3 * subject.d_sae + block)
    )
