"""Perplexity: how improbable the whole text is, prompt and continuation, for an evaluator.

exp of the mean negative log-probability of all tokens but the first (paper Section 2.3, where the
evaluator is Gemma-2-9B). The text is tokenised by the evaluator's tokenizer. A BOS, where the
evaluator has one, is context and not predicted.

Of texts that were written inside a chat template it is the answer's alone, given the request in the
evaluator's own template, or where that has none the request and a line break: the template's tokens
are the same in all texts, and would hide most of what differs.

Of texts whose steered next-token distributions are at hand, the same pass gives their KL divergence
from the unsteered ones (`kl`), where the evaluator is the model itself and reads the very tokens
that were generated; else the model reads those once more. It doesn't depend on the evaluator, and
is kept apart from what does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from steerlens.steering.metrics.texts import MetricRun, Texts, without_closing

if TYPE_CHECKING:
    from steerlens.config.schema import ModelConfig
    from steerlens.config.settings import SubjectSettings
    from steerlens.engine.generation import TextVectors
    from steerlens.engine.subject import LoadedModel, Subject, WeightCache


@dataclass
class PerplexityConfig:
    """Nothing to set: the run has its evaluator (`load_evaluator`)."""


Config = PerplexityConfig


def load_evaluator(
    entry: ModelConfig, settings: SubjectSettings, weight_cache: WeightCache | None = None
) -> LoadedModel:
    """Load the model `entry` as its authors ship it, with the device and the dtype of a run.

    Args:
        entry: the evaluator.
        settings: of the run's subject.
        weight_cache: what earlier runs have loaded.

    Raises:
        SteerlensError: it can't be loaded.
    """
    from sae_lens.saes.sae import SAEMetadata

    from steerlens.engine.subject import shared_model

    return shared_model(replace(settings, model=entry), SAEMetadata(), weight_cache, "evaluator")


OF_MODEL = ("kl",)
"""The columns that don't depend on the evaluator."""


def measure(
    texts: Texts, subject: Subject, config: PerplexityConfig, run: MetricRun
) -> Mapping[str, Sequence[float | None]]:
    """Return the column `perplexity` and, where the evaluator is the steered model, those of
    `measure_model`, for which the same pass serves.

    Perplexity is null for a text of fewer than 2 tokens (inside a template: an answer of none) and
    for one that is longer than the evaluator's context.
    """
    from steerlens.engine.generation import TextVectors
    from steerlens.steering.metrics.likelihood import likelihood_and_divergence

    lm = run.evaluator or subject.lm
    n_ctx = int(lm.bridge.cfg.n_ctx)
    bos = subject.bos if lm is subject.lm else lm.prepended_bos
    distinct = list(dict.fromkeys(texts.prompts))
    requests = [_request(lm, prompt) for prompt in distinct] if run.chat_template else distinct
    prompts = dict(zip(distinct, _tokens(requests, lm, bos), strict=True))
    if run.chat_template:
        tokens = [
            [*prompts[prompt], *answer]
            for prompt, answer in zip(texts.prompts, _tokens(texts.texts, lm, None), strict=True)
        ]
        least = [len(prompts[prompt]) + 1 for prompt in texts.prompts]
    else:
        joined = [prompt + text for prompt, text in zip(texts.prompts, texts.texts, strict=True)]
        tokens = _tokens(joined, lm, bos)
        least = [2] * len(tokens)
    fit = [index for index, ids in enumerate(tokens) if least[index] <= len(ids) <= n_ctx]
    run.progress(len(texts) - len(fit))

    generated = _generated(texts, subject, run.chat_template) if lm is subject.lm else {}
    same = {index: text.vectors for index, text in generated.items() if text.ids == tokens[index]}
    compared = same.keys() & set(fit)
    # Read token by token as they were generated, beside the evaluator's reading, so that their
    # prompts are run once for both.
    beside = {
        index: text
        for index, text in generated.items()
        if text.vectors.drawn_TD is not None and index not in compared
    }
    nothing = TextVectors()
    means, divergences = likelihood_and_divergence(
        lm,
        [*(tokens[index] for index in fit), *(text.ids for text in beside.values())],
        [
            *(prompts[texts.prompts[index]] for index in fit),
            *(text.prompt_ids for text in beside.values()),
        ],
        run.memory_budget,
        _at_most(len(fit), run.progress),
        run.chat_template,
        [
            *(same.get(index, nothing) for index in fit),
            *(text.vectors for text in beside.values()),
        ],
        subject.site.first_changed_block,
        run.prompt_states,
    )
    column: list[float | None] = [None] * len(texts)
    for index, mean in zip(fit, means, strict=False):
        column[index] = math.exp(mean)
    if texts.factors is None or lm is not subject.lm:
        return {"perplexity": column}
    of_index = dict(zip([*fit, *beside], divergences, strict=True))
    return {"perplexity": column, "kl": _kl(texts.factors, of_index)}


def measure_model(
    texts: Texts, subject: Subject, config: PerplexityConfig, run: MetricRun
) -> Mapping[str, Sequence[float | None]]:
    """Return the column `kl`, of texts whose factors are known, by the steered model alone.

    It is null for a text without a token of its own or whose steered distributions aren't to be
    had.
    """
    from steerlens.steering.metrics.likelihood import likelihood_and_divergence

    if texts.factors is None:
        return {}
    steered = {
        index: text
        for index, text in _generated(texts, subject, run.chat_template).items()
        if text.vectors.drawn_TD is not None
    }
    run.progress(len(texts) - len(steered))
    _, divergences = likelihood_and_divergence(
        subject.lm,
        [text.ids for text in steered.values()],
        [text.prompt_ids for text in steered.values()],
        run.memory_budget,
        run.progress,
        True,
        [text.vectors for text in steered.values()],
        subject.site.first_changed_block,
        run.prompt_states,
    )
    return {"kl": _kl(texts.factors, dict(zip(steered, divergences, strict=True)))}


def _kl(factors: Sequence[float], of_index: Mapping[int, float | None]) -> list[float | None]:
    """Return the divergence of every text: 0 of one that isn't steered."""
    return [0.0 if factor == 0 else of_index.get(index) for index, factor in enumerate(factors)]


def _at_most(n: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Return what tells `progress` of `n` texts, of however many are read."""
    n_left = n

    def advance(n_read: int) -> None:
        nonlocal n_left
        counted = min(n_read, n_left)
        n_left -= counted
        progress(counted)

    return advance


class _Generated(NamedTuple):
    """A text as it was generated, without a closing EOS."""

    ids: list[int]
    """Token ids of prompt and text."""
    prompt_ids: list[int]
    vectors: TextVectors


def _generated(texts: Texts, subject: Subject, chat_template: bool) -> dict[int, _Generated]:
    """Return the texts of which something is known that they were made of, by their indices."""
    if texts.made_of is None:
        return {}
    special = set(subject.lm.tokenizer.all_special_ids)
    prompts: dict[str, list[int]] = {}
    generated: dict[int, _Generated] = {}
    for index, vectors in enumerate(texts.made_of()):
        new = [*without_closing(texts.token_ids[index], special)]
        if all(part is None for part in vectors) or not new:
            continue
        prompt = texts.prompts[index]
        if prompt not in prompts:
            prompts[prompt] = subject.to_tokens(prompt, chat_template)[0].tolist()
        generated[index] = _Generated([*prompts[prompt], *new], prompts[prompt], vectors)
    return generated


def _request(lm: LoadedModel, prompt: str) -> str:
    return lm.chat(prompt) if lm.tokenizer.chat_template else f"{prompt}\n"


def _tokens(texts: Sequence[str], lm: LoadedModel, bos: int | None) -> list[list[int]]:
    from steerlens.engine.subject.model import with_bos

    tokens = lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [with_bos(ids, bos) for ids in tokens]
