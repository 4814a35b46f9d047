"""Continuations of many contexts at once against one token after another, under every edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest
import torch

from steerlens import SteerlensError
from steerlens.config.schema import POSITIONS
from steerlens.engine import continuations
from steerlens.engine.continuations import Continuations, Continued, EditsOf, Pair
from steerlens.engine.generation import ROW
from steerlens.engine.generation.targets import row_targets
from steerlens.engine.intervention import Operation
from steerlens.engine.intervention.hooks import NoEdits, SteeringHooks
from steerlens.engine.subject import Subject
from tests.support.naive_steering import naive_logits

MakeSubject = Callable[..., Subject]
LARGEST = 3.0
PAIRS = [
    Pair((0, 20, 21, 22), (23,)),
    Pair((0, 30, 31, 32, 33, 34, 35, 36, 37, 38), (40, 41, 42)),
    Pair((0, 20, 21, 22), (24, 25)),
    Pair((50,), (51,)),
    Pair((0, 20, 21, 60), (23, 26, 27)),
]
"""Contexts of two padded lengths, one of them twice, and one of a single token."""


def edits_of(
    subject: Subject, feature: int, factor: float, positions: str, **operation: Any
) -> EditsOf:
    row = pd.DataFrame([(feature, "", "", factor, "", 0)], columns=pd.Index(ROW))
    largest_F = torch.full((subject.d_sae,), LARGEST)
    targets = row_targets(subject, row, largest_F, 0)

    def of_batch(n_tokens: Sequence[int]) -> SteeringHooks:
        rows = targets.rows(torch.zeros(len(n_tokens), dtype=torch.int64))
        return SteeringHooks(subject, Operation(**operation), rows, positions, n_tokens)

    return of_batch


def naive(subject: Subject, pair: Pair, *edit: Any, **operation: Any) -> Continued:
    ids, total, greedy = list(pair.context), 0.0, True
    for token in pair.continuation:
        logits_V = naive_logits(subject, ids, len(pair.context), *edit, **operation)
        total += float(logits_V.log_softmax(-1)[token])
        greedy &= int(logits_V.argmax()) == token
        ids.append(token)
    return Continued(total, greedy)


def assert_like_naive(
    subject: Subject, scored: Sequence[Continued], *edit: Any, **operation: Any
) -> None:
    expected = [naive(subject, pair, *edit, **operation) for pair in PAIRS]
    assert [a.is_greedy for a in scored] == [b.is_greedy for b in expected]
    numbers = [[one.log_probability for one in of] for of in (scored, expected)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


@pytest.mark.parametrize(
    ("positions", "operator", "unit"),
    [
        *((positions, "add", "a_max") for positions in POSITIONS),
        *(("last", *both) for both in [("clamp", "max_activation"), ("min_clamp", "raw")]),
        *(("all", *both) for both in [("ablate", "a_max"), ("add", "norm")]),
    ],
)
def test_every_edit_gives_what_one_token_after_another_does(
    tiny_subject: MakeSubject, positions: str, operator: str, unit: str
) -> None:
    subject = tiny_subject("llama", "jumprelu")
    scorer = Continuations(subject, PAIRS, 2**30)
    edit: dict[str, Any] = {"operator": operator, "unit": unit, "keep_error": operator != "add"}
    largest = {"max_activation": LARGEST} if unit == "max_activation" else {}
    for feature, factor in ((5, 3.0), (9, 0.5)):
        scored = scorer.score(edits_of(subject, feature, factor, positions, **edit))
        assert_like_naive(subject, scored, [feature], factor, positions, **edit, **largest)


def test_what_is_before_the_edit_is_run_once_and_only_as_far_as_memory_goes(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject("gemma2", "topk")
    n_run: list[int] = []
    run = continuations.final_vectors

    def counted(bridge: Any, tokens_BL: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        n_run.append(tokens_BL.numel())
        return run(bridge, tokens_BL, *args, **kwargs)

    monkeypatch.setattr(continuations, "final_vectors", counted)
    for budget, is_less in ((2**30, True), (2, False)):
        scorer = Continuations(subject, PAIRS, budget)
        tokens = []
        for factor in (2.0, -2.0):
            n_run.clear()
            scored = scorer.score(edits_of(subject, 5, factor, "last"))
            assert_like_naive(subject, scored, [5], factor, "last")
            tokens.append(sum(n_run))
        assert (tokens[1] < tokens[0] / 2) == is_less


def test_a_temporal_sae_sees_no_padding(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "temporal")
    scored = Continuations(subject, PAIRS, 2**30).score(edits_of(subject, 5, 100.0, "last"))
    assert_like_naive(subject, scored, [5], 100.0, "last")


def test_a_context_loses_its_first_tokens_to_what_the_model_takes(
    tiny_subject: MakeSubject,
) -> None:
    subject = tiny_subject("llama", "jumprelu")
    n_ctx = int(subject.lm.bridge.cfg.n_ctx)
    long = tuple(20 + i % 50 for i in range(2 * n_ctx))
    done: list[int] = []

    def unsteered(pair: Pair) -> list[Continued]:
        scorer = Continuations(subject, [pair, pair], 2**30)
        return scorer.score(lambda n_tokens: NoEdits(len(n_tokens)), done.append)

    first = unsteered(Pair(long, (9, 8)))
    assert first == unsteered(Pair(long[-(n_ctx - 1) :], (9, 8)))
    assert first[0] == first[1]
    assert sum(done) == 4
    with pytest.raises(SteerlensError, match=r"has 65 tokens; .* takes 64"):
        unsteered(Pair((1,), tuple(range(65))))


def test_progress_counts_every_pair(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "jumprelu")
    done: list[int] = []
    scorer = Continuations(subject, PAIRS, 2**30)
    scorer.score(edits_of(subject, 5, 1.0, "last"), done.append)
    assert sum(done) == len(PAIRS)
