"""Perplexity: how improbable the whole text is, prompt and continuation, for an evaluator.

exp of the mean negative log-probability of all tokens but the first (paper Section 2.3, where the
evaluator is Gemma-2-9B). The text is tokenised by the evaluator's tokenizer. A BOS, where the
evaluator has one, is context and not predicted.

Of texts that were written inside a chat template it is the answer's alone, given the request in the
evaluator's own template, or where that has none the request and a line break: the template's tokens
are the same in all texts, and would hide most of what differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from steerlens.steering.metrics.texts import MetricRun, Texts

if TYPE_CHECKING:
    from steerlens.config.schema import ModelConfig
    from steerlens.config.settings import SubjectSettings
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


def measure(
    texts: Texts, subject: Subject, config: PerplexityConfig, run: MetricRun
) -> Mapping[str, Sequence[float | None]]:
    """Return the column `perplexity`.

    Null for a text of fewer than 2 tokens (inside a template: an answer of none) and for one that
    is longer than the evaluator's context.
    """
    from steerlens.steering.metrics.likelihood import mean_negative_log_likelihood

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

    means = mean_negative_log_likelihood(
        lm,
        [tokens[index] for index in fit],
        [prompts[texts.prompts[index]] for index in fit],
        run.memory_budget,
        run.progress,
        answers_only=run.chat_template,
    )
    column: list[float | None] = [None] * len(texts)
    for index, mean in zip(fit, means, strict=True):
        column[index] = math.exp(mean)
    return {"perplexity": column}


def _request(lm: LoadedModel, prompt: str) -> str:
    return lm.chat(prompt) if lm.tokenizer.chat_template else f"{prompt}\n"


def _tokens(texts: Sequence[str], lm: LoadedModel, bos: int | None) -> list[list[int]]:
    from steerlens.engine.subject.model import with_bos

    tokens = lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [with_bos(ids, bos) for ids in tokens]
