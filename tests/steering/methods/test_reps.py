"""RePS together and batched, against its definition: one concept, one text a forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from steerlens.engine.subject import Subject
from steerlens.steering.methods import reps
from steerlens.steering.methods.task import Task
from tests.support.concepts import tiny_concepts, tiny_task
from tests.support.naive_training import naive_loss

MakeSubject = Callable[..., Subject]


def naive_reps(task: Task, concept: int, config: reps.Config, seed: int) -> torch.Tensor:
    pairs = reps.pairs_of(task, [concept], seed).task
    rng = task.rng(concept, "RePS", seed)
    d_in = int(task.subject.sae.cfg.d_in)
    v_D = torch.nn.Parameter(torch.from_numpy(rng.uniform(-1, 1, d_in) / d_in**0.5).float())
    optimizer = torch.optim.AdamW([v_D], lr=config.lr, weight_decay=config.weight_decay)
    n = len(pairs.labelled.positives[0])
    n_steps = config.epochs * -(-n // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)

    def nll(text: int, factor: float, mask_D: torch.Tensor) -> torch.Tensor:
        def edit(x_LD: torch.Tensor) -> torch.Tensor:
            if factor:
                return x_LD + factor * (v_D * mask_D)
            amount_L = (x_LD @ v_D).relu() / v_D.norm() ** 2
            return x_LD - amount_L[:, None] * (v_D * mask_D)

        return naive_loss(pairs, 0, [text], edit)

    def of_reference(text: int) -> float:
        tokens = pairs.labelled.texts[text]
        with torch.no_grad():
            mean = float(naive_loss(pairs, 0, [text], lambda x_LD: x_LD))
        return mean * (len(tokens.ids) - tokens.n_prompt)

    for _ in range(config.epochs):
        order = rng.permutation(n)
        for first in range(0, n, config.batch_size):
            here = order[first : first + config.batch_size]
            losses = []
            for pair in here.tolist():
                with_, without = (
                    pairs.labelled.positives[0][pair],
                    pairs.labelled.negatives[0][pair],
                )
                factors = rng.choice(reps.FACTORS, 2).tolist()
                kept = torch.from_numpy(rng.random((4, d_in)) >= config.dropout).float()
                masks = kept / (1 - config.dropout)
                harder = of_reference(with_) - of_reference(without)
                steered = nll(without, factors[1], masks[1]) - max(harder, 1) * nll(
                    with_, factors[0], masks[0]
                )
                nulled = nll(with_, 0, masks[3]) - max(-harder, 1) * nll(without, 0, masks[2])
                losses += [-logsigmoid(steered), -logsigmoid(nulled)]
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_([v_D], config.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return v_D.data


@pytest.mark.parametrize(("kind", "site"), [("gemma2", "resid_post"), ("llama", "attn_out")])
def test_training_together_equals_a_plain_loop(
    tiny_subject: MakeSubject, kind: str, site: str
) -> None:
    task = tiny_task(tiny_subject(kind, site=site), tiny_concepts(2, n_texts=(4, 3)))
    config = reps.Config(epochs=2, batch_size=3)
    found = reps.fit(task, config, seed=5)
    assert found.scale_C is not None
    assert found.scale_C.tolist() == [11, 11]
    for concept in range(2):
        expected_D = naive_reps(task, concept, config, seed=5)
        torch.testing.assert_close(found.vectors_CD[concept], expected_D, rtol=0, atol=5e-4)


def test_without_an_epoch_the_vector_is_where_it_starts(tiny_subject: MakeSubject) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(2, n_texts=(3, 3)))
    found_CD = reps.fit(task, reps.Config(epochs=0), seed=1).vectors_CD
    for concept in range(2):
        start_D = task.rng(concept, "RePS", 1).uniform(-1, 1, 32) / 32**0.5
        torch.testing.assert_close(found_CD[concept], torch.from_numpy(start_D).float())


def test_own_answers_are_the_models_and_no_neighbours(tiny_subject: MakeSubject) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(2, n_texts=(6, 3)))
    texts = [task.labelled.texts[place] for place in task.labelled.positives[0]]
    answers = reps.own_answers(task, texts, list(range(6)))
    assert reps.own_answers(task, texts[2:3], [2]) == answers[2:3]
    assert reps.own_answers(task, texts[:1], [7]) != answers[:1]
    for text, answer in zip(texts, answers, strict=True):
        assert answer.ids[: text.n_prompt] == text.ids[: text.n_prompt]
        assert text.n_prompt < len(answer.ids) <= len(text.ids)
        assert (answer.n_prefix, answer.n_prompt) == (text.n_prefix, text.n_prompt)
    pairs = reps.pairs_of(task, [1, 0], seed=3)
    alone = reps.pairs_of(replace(task), [0], seed=3)
    own = [pairs.task.labelled.texts[place] for place in pairs.task.labelled.negatives[1]]
    assert own == [alone.task.labelled.texts[place] for place in alone.task.labelled.negatives[0]]


def test_training_prefers_the_concepts_answers(tiny_subject: MakeSubject) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(1, n_texts=(8, 3)))
    config = reps.Config(epochs=8, dropout=0.0)
    pairs = reps.pairs_of(task, [0], seed=0).task

    def preference(v_D: torch.Tensor) -> float:
        """By how much the vector raises the concept's answers over the model's own."""
        sides = (pairs.labelled.negatives[0], pairs.labelled.positives[0])
        with torch.no_grad():
            own, wanted = (float(naive_loss(pairs, 0, side, lambda x: x + v_D)) for side in sides)
        return own - wanted

    v_D = reps.fit(task, config, 0).vectors_CD[0]
    assert preference(11 * v_D) > preference(0 * v_D) + 0.5
