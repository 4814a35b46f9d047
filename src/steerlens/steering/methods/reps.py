"""RePS: a steering vector trained to prefer answers with the concept, and others when it is nulled.

Reference-free preference steering (arXiv 2505.20809), one vector a concept. A positive text is an
answer `y_c` to a prompt `x`; `y` is what the model itself answers. With the vector added, `y_c` is
to be more likely than `y`, and with the vector's direction taken out of the residual stream, `y`
more than `y_c`. What the unedited model finds less likely counts more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from steerlens.engine.generation.decoding import decode, padded_length
from steerlens.engine.generation.row_batches import eos_ids
from steerlens.engine.generation.sampling import Sampling, row_seed
from steerlens.engine.generation.stopping import Stopping
from steerlens.engine.intervention.hooks import NoEdits
from steerlens.engine.memory import rows_that_fit
from steerlens.steering.methods.directions import Directions
from steerlens.steering.methods.labelled import Labelled, Tokens
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import (
    Batch,
    Budget,
    Edit,
    FromHook,
    batch_of,
    budget_of,
    clip_rows,
    groups_that_fit,
    n_steps,
)

NAME = "RePS"
TRAINS = True

FACTORS = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0)
"""What the vector is times in training, drawn for each text. Their mean is what the factor 1
means."""

ROWS_OF_PAIR = 4
"""Rows of a batch for each pair: both answers with the vector added, both without it."""

ANSWERS_AT_ONCE = 64


@dataclass
class RepsConfig:
    """The published implementation's settings by default."""

    epochs: int = 18
    batch_size: int = 6
    """Pairs in a step; negatives aren't used."""
    lr: float = 0.08
    """Falls linearly to 0."""
    weight_decay: float = 0.0
    dropout: float = field(default=0.1, metadata={"below": 1})
    """Share of the vector's entries that a row of a batch goes without."""
    clip: float = 1.0
    """Largest length of the gradient."""


Config = RepsConfig


def budget(config: RepsConfig, n_positives: int, n_negatives: int) -> Budget:
    """Return what training takes; see `methods`."""
    return budget_of(config, n_positives, ROWS_OF_PAIR)


@dataclass(frozen=True)
class Pairs:
    """Answers with and without the concepts: both are texts of the task."""

    task: Task
    """With the model's own answers for negatives, one for each positive."""
    nll_N: torch.Tensor
    """Of each text's answer the negative log-probability that the unedited model gives it."""


def fit(task: Task, config: RepsConfig, seed: int) -> Directions:
    """Return the trained vectors; the factor 1 adds them as strongly as training did on average.
    The score of a token is `relu(h @ v)`.
    """
    rows: dict[int, torch.Tensor] = {}
    for alike in task.labelled.alike():
        for group in groups_that_fit(task, alike, ROWS_OF_PAIR * config.batch_size):
            pairs = pairs_of(task, group, seed)
            rows |= dict(zip(group, _train(pairs, config, seed), strict=True))
            task.progress(len(group))
    vectors_CD = torch.stack([rows[c] for c in range(len(task))])
    scale_C = torch.full((len(task),), float(np.mean(FACTORS)))
    return Directions(vectors_CD, rectified=True, scale_C=scale_C)


def pairs_of(task: Task, concepts: Sequence[int], seed: int) -> Pairs:
    """Return the pairs of some of a task's concepts. The model's own answer is as long as the
    text's, drawn with temperature 1 by the seed, the concept and the text.
    """
    labelled = task.labelled
    texts_of = {c: [labelled.texts[index] for index in labelled.positives[c]] for c in concepts}
    seeds = [
        row_seed(NAME, seed, task.concepts[c].id, *text.ids)
        for c in concepts
        for text in texts_of[c]
    ]
    texts = [text for c in concepts for text in texts_of[c]]
    n_each = [len(labelled.positives[c]) for c in concepts]
    ends = np.cumsum(n_each).tolist()
    ranges = [range(end - n, end) for n, end in zip(n_each, ends, strict=True)]
    answers = [
        answer
        for of in ranges
        for answer in own_answers(task, [texts[i] for i in of], [seeds[i] for i in of])
    ]
    pairs_task = replace(
        task,
        concepts=tuple(task.concepts[c] for c in concepts),
        labelled=Labelled(
            [*texts, *answers],
            [[*of] for of in ranges],
            [[len(texts) + index for index in of] for of in ranges],
        ),
    )
    return Pairs(pairs_task, _nll(pairs_task))


@torch.no_grad()
def own_answers(task: Task, texts: Sequence[Tokens], seeds: Sequence[int]) -> list[Tokens]:
    """Return each text's prompt with what the unsteered model goes on with, at most as long as the
    text.
    """
    subject = task.subject
    n_ctx = int(subject.lm.bridge.cfg.n_ctx)
    ends = eos_ids(subject)
    answers: dict[int, Tokens] = {}
    # What a row gives is its own only among prompts that are padded to one length.
    by_length: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        length = padded_length(subject, text.n_prompt, 1)
        by_length.setdefault(length, []).append(index)
    for length, alike in by_length.items():
        for start in range(0, len(alike), ANSWERS_AT_ONCE):
            batch = alike[start : start + ANSWERS_AT_ONCE]
            prompts = [texts[index].ids[: texts[index].n_prompt] for index in batch]
            longest = max(len(texts[index].ids) - texts[index].n_prompt for index in batch)
            stopping = Stopping(
                subject.lm.tokenizer, ends, [], max(1, min(longest, n_ctx - length))
            )
            continued = decode(
                subject, prompts, torch.arange(len(batch)), NoEdits(len(batch)),
                [seeds[index] for index in batch], Sampling(temperature=1.0), stopping,
            )  # fmt: skip
            for index, prompt, answer in zip(batch, prompts, continued, strict=True):
                text = texts[index]
                new = answer.token_ids[: len(text.ids) - text.n_prompt]
                # A text of the set doesn't show its end either.
                new = new[:-1] if len(new) > 1 and new[-1] in ends else new
                answers[index] = Tokens([*prompt, *new], text.n_prefix, text.n_prompt)
    return [answers[index] for index in range(len(texts))]


@torch.no_grad()
def _nll(task: Task) -> torch.Tensor:
    """Return, as (N,), the negative log-probability of each text's answer, unedited."""
    texts = task.labelled.texts
    model = FromHook(task)
    longest = max(len(text.ids) for text in texts)
    cfg = task.subject.lm.bridge.cfg
    per_row = 4 * longest * (8 * cfg.d_model + (cfg.d_mlp or 4 * cfg.d_model))
    parts = []
    for indices in torch.arange(len(texts)).split(rows_that_fit(task.memory_budget, per_row, 64)):
        batch = batch_of(task, [(0, index) for index in indices.tolist()])
        parts.append(_by_row(model, batch, lambda x_RLD: x_RLD).cpu())
    n_N = torch.tensor([len(text.ids) - text.n_prompt for text in texts])
    return torch.cat(parts) * n_N


def _train(pairs: Pairs, config: RepsConfig, seed: int) -> torch.Tensor:
    task = pairs.task
    model = FromHook(task)
    device = task.subject.lm.device_of_block(task.subject.layer)
    d_in = int(task.subject.sae.cfg.d_in)
    rngs = [task.rng(concept, NAME, seed) for concept in range(len(task))]
    start_CD = np.stack([rng.uniform(-1, 1, d_in) for rng in rngs]) / d_in**0.5  # torch's Linear
    v_CD = torch.nn.Parameter(torch.from_numpy(start_CD).float().to(device))
    optimizer = torch.optim.AdamW([v_CD], lr=config.lr, weight_decay=config.weight_decay)
    n_pairs = len(task.labelled.positives[0])
    steps = max(1, n_steps(n_pairs, config.epochs, config.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(config.epochs):
        orders = [rng.permutation(n_pairs) for rng in rngs]
        for first in range(0, n_pairs, config.batch_size):
            drawn = [
                (concept, int(pair), rng.choice(FACTORS, 2), rng.random((ROWS_OF_PAIR, d_in)))
                for concept, (rng, order) in enumerate(zip(rngs, orders, strict=True))
                for pair in order[first : first + config.batch_size]
            ]
            (grad_CD,) = torch.autograd.grad(
                _losses(pairs, model, v_CD, drawn, config.dropout).sum(), [v_CD]
            )
            v_CD.grad = clip_rows(grad_CD, config.clip)
            optimizer.step()
            schedule.step()
    return v_CD.data


def _losses(
    pairs: Pairs,
    model: FromHook,
    v_CD: torch.Tensor,
    drawn: Sequence[tuple[int, int, np.ndarray, np.ndarray]],
    dropout: float,
) -> torch.Tensor:
    """Return, as (C,), each concept's loss, the mean over its pairs of both directions.

    Args:
        pairs: of C concepts.
        model: runs their texts from the hook on.
        v_CD: the vectors.
        drawn: of each of P pairs the concept, its number, the factors of both answers, and numbers
            from 0 to 1 that say which entries of the vector a row goes without.
        dropout: of those the share.
    """
    labelled = pairs.task.labelled
    rows, factors = [], []
    for concept, pair, factor_2, _ in drawn:
        with_, without = labelled.positives[concept][pair], labelled.negatives[concept][pair]
        rows += [(concept, text) for text in (with_, without, without, with_)]
        factors += [*factor_2, 0.0, 0.0]
    batch = batch_of(pairs.task, rows)
    concept_R = batch.concept_R.to(v_CD.device)
    factor_R = torch.tensor(factors, dtype=torch.float32, device=v_CD.device)
    kept_RD = torch.from_numpy(np.concatenate([numbers for *_, numbers in drawn]) >= dropout)
    kept_RD = kept_RD.to(v_CD) / (1 - dropout)

    def edit(x_RLD: torch.Tensor) -> torch.Tensor:
        v_RD = v_CD[concept_R]
        latent_RL = torch.bmm(x_RLD.float(), v_RD[..., None])[..., 0].relu()
        null_RL = -latent_RL / v_RD.square().sum(dim=-1, keepdim=True)
        amount_RL = torch.where(factor_R[:, None] == 0, null_RL, factor_R[:, None])
        amount_RL = amount_RL * batch.own_RL.to(x_RLD.device)
        return x_RLD + amount_RL[..., None] * (v_RD * kept_RD)[:, None]

    mean_nll_P4 = _by_row(model, batch, edit).view(-1, ROWS_OF_PAIR)
    nll_P4 = pairs.nll_N[torch.tensor([text for _, text in rows])].view(-1, ROWS_OF_PAIR)
    nll_P4 = nll_P4.to(mean_nll_P4)
    # Each direction has the winner first; what the model finds unlikely counts more.
    loss_P = torch.zeros(len(drawn), device=mean_nll_P4.device)
    for winner, loser in ((0, 1), (2, 3)):
        beta_P = (nll_P4[:, winner] - nll_P4[:, loser]).clamp(min=1)
        margin_P = mean_nll_P4[:, loser] - beta_P * mean_nll_P4[:, winner]
        loss_P = loss_P - logsigmoid(margin_P) / 2
    concept_P = torch.tensor([concept for concept, *_ in drawn], device=loss_P.device)
    n_C = torch.bincount(concept_P, minlength=len(v_CD)).clamp(min=1)
    return torch.zeros(len(v_CD), device=loss_P.device).index_add(0, concept_P, loss_P) / n_C


def _by_row(model: FromHook, batch: Batch, edit: Edit) -> torch.Tensor:
    """Return, as (R,), the mean negative log-probability of each row's answer."""
    every_R = torch.arange(len(batch.texts))
    return model.losses(replace(batch, concept_R=every_R), edit, len(every_R)).float()
