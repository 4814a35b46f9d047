"""What every metric keeps to: columns of the table, and a text's numbers are its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from steerlens import SteerlensError
from steerlens.engine.subject import Subject
from steerlens.results import GENERATIONS
from steerlens.steering.metrics import MetricRun, Texts, metrics
from steerlens.steering.metrics.drift import FIRED
from tests.steering.metrics.texts import chosen, random_texts

MakeSubject = Callable[..., Subject]
LENGTH = 40


@pytest.mark.parametrize("name", metrics())
def test_columns_are_those_of_the_table(tiny_subject: MakeSubject, name: str) -> None:
    subject, metric = tiny_subject(), metrics()[name]
    columns = metric.measure(random_texts(subject), subject, metric.Config(), MetricRun())
    assert set(columns) <= {*GENERATIONS.columns, FIRED}  # of which `with_drift` makes a column
    assert {len(column) for column in columns.values()} == {LENGTH}
    keys = {"model": "m", "sae": "s", "hook_name": "h", "layer": 2, "feature": [0] * LENGTH}
    of_table = {name: column for name, column in columns.items() if name != FIRED}
    frame = GENERATIONS.frame({**keys, **of_table})
    assert not any(frame[column].isna().all() for column in of_table)


@pytest.mark.parametrize("name", metrics())
def test_no_texts_give_empty_columns(tiny_subject: MakeSubject, name: str) -> None:
    metric = metrics()[name]
    columns = metric.measure(
        Texts(np.zeros(0, np.int64), [], [], []), tiny_subject(), metric.Config(), MetricRun()
    )
    assert columns
    assert not any(columns.values())


@pytest.mark.parametrize("name", metrics())
def test_a_text_is_measured_as_if_it_were_alone(tiny_subject: MakeSubject, name: str) -> None:
    subject, metric = tiny_subject("gemma2"), metrics()[name]
    texts = random_texts(subject)
    together = metric.measure(texts, subject, metric.Config(), MetricRun())
    shuffled = np.random.default_rng(1).permutation(LENGTH).tolist()
    mixed = metric.measure(chosen(texts, shuffled), subject, metric.Config(), MetricRun())
    some = range(0, LENGTH, 4)
    alone = [
        metric.measure(chosen(texts, [i]), subject, metric.Config(), MetricRun()) for i in some
    ]
    if FIRED in together:  # lists of whole numbers
        fired = together[FIRED]
        assert [fired[i] for i in shuffled] == mixed[FIRED]
        assert [fired[i] for i in some] == [of_text[FIRED][0] for of_text in alone]
    for column in together.keys() - {FIRED}:
        values = together[column]
        assert [values[i] for i in shuffled] == pytest.approx(list(mixed[column]), rel=1e-5)
        of_some = [values[i] for i in some]
        assert of_some == pytest.approx([one[column][0] for one in alone], rel=1e-5)


@pytest.mark.parametrize("name", metrics())
def test_progress_counts_every_text(tiny_subject: MakeSubject, name: str) -> None:
    subject, metric = tiny_subject(), metrics()[name]
    done: list[int] = []
    run = MetricRun(progress=done.append)
    metric.measure(random_texts(subject), subject, metric.Config(), run)
    assert sum(done) == LENGTH


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(SteerlensError, match="differ in length"):
        Texts(np.zeros(2, np.int64), ["a"], ["b"], [[1]])
