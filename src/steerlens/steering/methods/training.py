"""Directions that are trained by what the model then writes: many concepts in one batch.

The blocks below the SAE's hook don't change, so they run once. A step's forward begins at the hook:
one row of any tokens runs up to it, and is replaced by the edited vectors of all rows. No concept's
loss touches another's direction, so a batch of many concepts trains each as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from steerlens.engine.activations.stream import TOKENS_ON_CPU, TOKENS_ON_GPU
from steerlens.engine.memory import rows_that_fit
from steerlens.engine.subject import Subject
from steerlens.engine.subject.forward import hooks_on
from steerlens.engine.subject.head import Head
from steerlens.steering.methods.task import Task

ROWS_AT_ONCE = 256
"""Rows of logits that are in memory together."""


@dataclass(frozen=True)
class Batch:
    """Texts of C concepts, B of each, as C * B rows of L tokens; padding stands after the text."""

    concept_R: torch.Tensor
    """(R,): which of the C concepts a row is of."""
    texts: list[int]
    """(R,): the row's place among the task's texts."""
    tokens_RL: torch.Tensor
    own_RL: torch.Tensor
    """Positions of the text itself, without prefix and padding: these are edited."""
    goal_RL: torch.Tensor
    """Positions whose token is to be predicted."""


def batch_of(task: Task, rows: Sequence[tuple[int, int]]) -> Batch:
    """Return a row for each pair of concept and text."""
    places = [index for _, index in rows]
    texts = [task.labelled.texts[index] for index in places]
    shape = (len(texts), max(len(text.ids) for text in texts))
    tokens, own_LB, goal = np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text.ids)] = text.ids
        own_LB[row, text.n_prefix : len(text.ids)] = True
        goal[row, text.n_prompt : len(text.ids)] = True
    concept_R = torch.tensor([concept for concept, _ in rows])
    return Batch(concept_R, places, *map(torch.from_numpy, (tokens, own_LB, goal)))


def groups_that_fit(task: Task, concepts: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield concepts whose batches are trained together."""
    lm, texts = task.subject.lm, task.labelled.texts
    longest = max(len(text.ids) for text in texts)
    typical = max(1, sum(len(text.ids) for text in texts) // len(texts))
    cfg = lm.bridge.cfg
    block = 6 * (cfg.d_mlp or 4 * cfg.d_model) + 24 * cfg.d_model + 4 * cfg.n_heads * longest
    n_bytes = lm.dtype.itemsize * (lm.n_layers - task.subject.layer) * block * longest * batch_size
    at_most = TOKENS_ON_CPU if lm.device.type == "cpu" else TOKENS_ON_GPU
    most = min(len(concepts), max(1, at_most // (typical * batch_size)))
    size = rows_that_fit(task.memory_budget, n_bytes, most)
    for start in range(0, len(concepts), size):
        yield list(concepts[start : start + size])


def epochs(
    task: Task,
    concepts: Sequence[int],
    method: str,
    seed: int,
    n_epochs: int,
    batch_size: int,
    negatives: bool,
) -> Iterator[Batch]:
    """Yield the batches of some concepts that have equally many texts, each with its own order."""
    labelled = task.labelled
    rngs = [task.rng(concept, method, seed) for concept in concepts]
    of = [labelled.of(c) if negatives else labelled.positives[c] for c in concepts]
    for _ in range(n_epochs):
        orders = [rng.permutation(len(of[0])) for rng in rngs]
        for first in range(0, len(of[0]), batch_size):
            yield batch_of(
                task,
                [
                    (c, texts[k])
                    for c, (texts, order) in enumerate(zip(of, orders, strict=True))
                    for k in order[first : first + batch_size]
                ],
            )


def n_steps(n_texts: int, n_epochs: int, batch_size: int) -> int:
    """Return how many steps training takes."""
    return n_epochs * -(-n_texts // batch_size)


class Budget(NamedTuple):
    """What learning a concept's direction took; None = nothing of the kind."""

    epochs: int | None = None
    """How often training saw the concept's texts."""
    rows: int | None = None
    """Rows of texts that training went through, over all epochs."""
    steps: int | None = None
    """Steps of the optimizer."""
    vectors: int | None = None
    """Vectors whose effect on texts was measured."""


def budget_of(config: Any, n_texts: int, rows_of_text: int = 1) -> Budget:
    """Return the budget of `config.epochs` over `n_texts` in batches of `config.batch_size`, and
    as many of them in a step as `config.accumulate` says.
    """
    batches_of_step = getattr(config, "accumulate", 1)
    of_epoch = -(-n_steps(n_texts, 1, config.batch_size) // batches_of_step)
    return Budget(config.epochs, config.epochs * n_texts * rows_of_text, config.epochs * of_epoch)


Edit = Callable[[torch.Tensor], torch.Tensor]
"""Of vectors (R, L, D) at the hook."""


class FromHook:
    """Losses of a task's batches with the vectors at the SAE's hook edited."""

    def __init__(self, task: Task) -> None:
        self._task = task
        # Elsewhere the residual stream would go past the hook in one row.
        residual = ("hook_resid_pre", "hook_resid_post")
        self._begins_there = task.subject.site.write.endswith(residual)

    def losses(self, batch: Batch, edit: Edit, n_concepts: int) -> torch.Tensor:
        """Return, as (C,), mean negative log-probability of the tokens that each concept's rows
        aim at.
        """
        tokens_RL, begin_RLD = batch.tokens_RL, None
        if self._begins_there:
            vectors = self._task.vectors
            begin_RLD = torch.nn.utils.rnn.pad_sequence(
                [vectors.whole(text) for text in batch.texts], batch_first=True
            )
            tokens_RL = tokens_RL[:1]

        def write(out: torch.Tensor, hook: Any) -> torch.Tensor:
            x_RLD = out.flatten(2) if begin_RLD is None else begin_RLD
            return edit(x_RLD).to(out.dtype).reshape(-1, *out.shape[1:])

        hooks = [(self._task.subject.site.write, write)]
        return goal_losses(self._task.subject, batch, tokens_RL, hooks, n_concepts)


def goal_losses(
    subject: Subject,
    batch: Batch,
    tokens: torch.Tensor,
    hooks: list[tuple[str, Any]],
    n_concepts: int,
) -> torch.Tensor:
    """Return, as (C,), mean negative log-probability of the tokens that each concept's rows aim
    at, when `tokens` run with `hooks` on; these give the batch its rows if `tokens` don't.
    """
    captured: list[torch.Tensor] = []

    def catch(h_RLD: torch.Tensor, hook: Any) -> torch.Tensor:
        captured.append(h_RLD)
        return h_RLD[:0]  # the unembedding is not the model's to do here

    bridge = subject.lm.bridge
    with hooks_on(bridge, [*hooks, ("unembed.hook_in", catch)]):
        bridge(tokens.to(subject.lm.device), use_cache=False)
    h_RLD = captured[0]
    goal_RL = batch.goal_RL[:, 1:].to(h_RLD.device)
    targets_N = batch.tokens_RL[:, 1:].to(h_RLD.device)[goal_RL]
    nll_N = token_losses(subject.lm.head, h_RLD[:, :-1][goal_RL], targets_N)
    concept_N = batch.concept_R.to(nll_N.device)[:, None].expand(goal_RL.shape)[goal_RL]
    sum_C = nll_N.new_zeros(n_concepts).index_add(0, concept_N, nll_N)
    return sum_C / torch.bincount(concept_N, minlength=n_concepts).clamp(min=1)


def token_losses(head: Head, h_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return, as (N,) float32, negative log-probabilities of targets, logits never all in
    memory.
    """
    losses: Any = _TokenLosses.apply(h_ND.to(head.device), targets_N.to(head.device), head)
    return losses


class _TokenLosses(torch.autograd.Function):
    """The gradient is made with the loss, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, h_ND: torch.Tensor, targets_N: torch.Tensor, head: Head) -> torch.Tensor:
        losses, gradients = [], []
        for h_BD, targets_B in zip(
            h_ND.split(ROWS_AT_ONCE), targets_N.split(ROWS_AT_ONCE), strict=True
        ):
            logits_BV = head.finish(head.logits(h_BD)).float()
            log_p_BV = logits_BV.log_softmax(dim=-1)
            losses.append(-log_p_BV.gather(-1, targets_B[:, None])[:, 0])
            slope_BV = log_p_BV.exp_()
            slope_BV[torch.arange(len(targets_B)), targets_B] -= 1
            if head.softcap is not None:
                slope_BV *= 1 - (logits_BV / head.softcap).square()
            gradients.append((slope_BV * head.scale).to(h_BD) @ head.weight)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grads[0][:, None].to(gradient_ND), None, None


def clip_rows(grad_CD: torch.Tensor, longest: float) -> torch.Tensor:
    """Return each concept's gradient cut to a length, as `clip_grad_norm_` would cut it alone."""
    length_C1 = grad_CD.norm(dim=-1, keepdim=True)
    return grad_CD * (longest / (length_C1 + 1e-6)).clamp(max=1)
