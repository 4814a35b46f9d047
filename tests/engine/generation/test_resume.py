"""Finished texts are kept: a killed or a wider run generates only what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steerlens.config.compose import compose
from steerlens.config.schema import RANDOM_DIRECTION
from steerlens.engine.generation import ROW
from steerlens.engine.subject import Subject
from steerlens.scores import ScoreRun
from steerlens.storage.store import Store
from tests.support.generating import (
    GREEDY,
    PROMPTS,
    SAMPLED,
    assert_equal_texts,
    count_decoded,
    ids_of,
    rows_of,
    texts_of,
)

MakeSubject = Callable[..., Subject]
SITES = ("resid_pre", "resid_mid", "attn_out", "attn.hook_z", "mlp_out")


@pytest.fixture
def stored(tmp_path: Path) -> ScoreRun:
    return ScoreRun(store=Store(tmp_path / "texts"))


def test_a_killed_run_goes_on_where_it_was(
    subject: Subject, stored: ScoreRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(prompts=PROMPTS)
    whole = texts_of(subject, rows, **SAMPLED)
    settings = {**SAMPLED, "batch_size": 7}
    with monkeypatch.context() as patch:
        killed = count_decoded(patch, fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            texts_of(subject, rows, stored, **settings)
    assert killed == [7]
    again = count_decoded(monkeypatch)
    assert_equal_texts(texts_of(subject, rows, stored, **settings), whole)
    assert again == [7, 7, 3]
    assert_equal_texts(texts_of(subject, rows, stored, **settings), whole)
    assert again == [7, 7, 3]


def test_a_wider_run_generates_only_what_is_missing(
    subject: Subject, stored: ScoreRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = count_decoded(monkeypatch)
    some = rows_of([5], [0.0, 2.0], PROMPTS[:2])
    first = texts_of(subject, some, stored, **SAMPLED)
    n_done = len(some)
    for wider in (
        rows_of([5], [0.0, 2.0, 8.0], PROMPTS[:2]),
        rows_of([5], [0.0, 2.0, 8.0], PROMPTS),
        rows_of([9, 5], [0.0, 2.0, 8.0], PROMPTS),
        rows_of([9, 5], [0.0, 2.0, 8.0], PROMPTS, controls=["", RANDOM_DIRECTION]),
        rows_of([9, 5], [0.0, 2.0, 8.0], PROMPTS, controls=["", RANDOM_DIRECTION], samples=2),
    ):
        found = texts_of(subject, wider, stored, **SAMPLED)
        assert sum(sizes) == len(wider)
        assert len(found) == len(wider) > n_done
        n_done = len(wider)
        again = some.merge(found, on=list(ROW), how="left")
        assert ids_of(again) == ids_of(first)
    assert_equal_texts(texts_of(subject, wider, **SAMPLED), found)


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"temperature": 0.8}, True),
        ({"top_k": 5}, True),
        ({"top_p": 0.5}, True),
        ({"max_new_tokens": 7}, True),
        ({"stop": "."}, True),
        ({"operator": "clamp"}, True),
        ({"unit": "raw"}, True),
        ({"positions": "all"}, True),
        ({"keep_error": False}, True),
        ({"batch_size": 3}, False),
        ({"samples": 2}, False),  # says which rows there are, not what is in them
        ({"default_max_activation": 50.0}, False),  # of another unit
    ],
)
def test_what_changes_texts_generates_anew_and_nothing_else(
    subject: Subject,
    stored: ScoreRun,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    anew: bool,
) -> None:
    rows = rows_of([5], [0.0, 2.0], PROMPTS[:2])
    texts_of(subject, rows, stored, **SAMPLED)
    sizes = count_decoded(monkeypatch)
    texts_of(subject, rows, stored, **{**SAMPLED, **change})
    assert sum(sizes) == (len(rows) if anew else 0)


def test_another_seed_or_sae_generates_anew(
    tiny_subject: MakeSubject, stored: ScoreRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of([5], [2.0], PROMPTS[:2])
    texts_of(tiny_subject(), rows, stored, **SAMPLED)
    sizes = count_decoded(monkeypatch)
    texts_of(tiny_subject(), rows, ScoreRun(seed=1, store=stored.store), **SAMPLED)
    assert sizes == [2]
    texts_of(tiny_subject(seed=2), rows, stored, **SAMPLED)
    assert sizes == [2, 2]


def test_another_corpus_generates_anew_where_its_maxima_count(
    subject: Subject, corpus_run: ScoreRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.txt").write_text("Note that w30 w31 w32\n" * 5)
    corpus = compose(["corpus=text", f"corpus.path={tmp_path / 'other.txt'}"]).corpus
    other_run = ScoreRun(corpus=corpus, store=corpus_run.store)
    sizes = count_decoded(monkeypatch)
    for unit, expected in (("max_activation", [2, 2]), ("a_max", [2])):
        sizes.clear()
        for run in (corpus_run, other_run, corpus_run):
            texts_of(subject, rows_of([5], [2.0], PROMPTS[:2]), run, unit=unit, **GREEDY)
        assert sizes == expected
