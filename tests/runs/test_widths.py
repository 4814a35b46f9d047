"""What a plan, a sweep, a comparison and runs toward concepts print loses nothing at any width."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from steerlens.analysis.series import Series
from steerlens.analysis.summary import summarise
from steerlens.config.compose import compose
from steerlens.config.schema import StudyConfig
from steerlens.config.settings import parse_settings
from steerlens.report import sweep as sweep_report
from steerlens.report.concept_page import program
from steerlens.report.studies import table1
from steerlens.report.sweep import print_sweep
from steerlens.report.terminal import print_summary
from steerlens.results import WORDS
from steerlens.results.folder import RunTables
from steerlens.runs import compare, plan
from tests.report.test_concept_page import LONG, word_tables
from tests.report.test_terminal import console, shown
from tests.support.ratings import rated_tables

FORMS = [(60, True), (80, True), (200, True), (80, False)]
REASON = "the corpus has no text: " + " ".join(f"reason{n}" for n in range(40))
LONG_FILE = "a/long/name/of/a/file/that/takes/more/than/a/narrow/line.txt"
SEEDS = " ".join(map(str, range(100, 160)))


@pytest.fixture(params=FORMS, ids=lambda form: f"{form[0]}{'' if form[1] else ' in a pipe'}")
def where(request: pytest.FixtureRequest) -> Console:
    return console(*request.param)


def assert_whole(where: Console, *sentences: str, apart: str = "") -> str:
    """Assert that all `sentences` are there, word for word, and no line is too long.

    Args:
        where: what was printed on.
        sentences: what has to be there.
        apart: how a line begins that is never broken, as the addresses of files aren't.
    """
    text = shown(where)
    words = " ".join(text.split())
    assert "…" not in words
    for sentence in sentences:
        assert " ".join(sentence.split()) in words
    if where.is_terminal:
        lines = [
            line for line in text.splitlines() if not (apart and line.strip().startswith(apart))
        ]
        assert max(map(cell_len, lines)) <= where.width
    else:
        for sentence in sentences:
            assert sentence in text  # in one line
    return text


def test_a_plan(where: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "console_on", lambda stream: where)
    monkeypatch.setattr(plan, "weights_are_here", lambda config: False)
    path = " ".join(f"part{n}" for n in range(30))
    settings = parse_settings(compose(["subject=gemma-2-2b", "score=all"]))
    model = dataclasses.replace(settings.subject.model, path=path)
    subject = dataclasses.replace(settings.subject, model=model)
    plan.print_plan(dataclasses.replace(settings, subject=subject))
    text = assert_whole(where, path, "unknown until the weights are here")
    assert all(re.search(rf"\b{name}\b", text) for name in settings.scores)


def test_a_joined_sweep(where: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_report, "console_on", lambda stream: where)
    numbers = {"n_features": [3.0, 12.0, None], "output_score_median": [0.123, 0.456, None]}
    rows = pd.DataFrame(
        {
            "job": ["0", "1", "2"],
            "state": ["done", "done", "failed"],
            "corpus.path": [f"{job}/{LONG_FILE}" for job in range(3)],
            **{name: numbers.get(name) for name in sweep_report.NUMBERS},
            "reason": [None, None, REASON],
        }
    )
    print_sweep(rows, [], None, Path("a folder"))
    text = assert_whole(where, f"Job 2 failed: {REASON}", apart="Joined: ")
    assert "\nJoined: a folder\n" in text
    cells = {*re.split(r"[\s,]+", text)}
    assert {"0", "1", "2", "done", "failed", "3", "12", "0.123", "0.456"} <= cells
    letters = "".join(text.split())
    assert all(f"{job}/{LONG_FILE}" in letters for job in range(3))


def test_a_comparison(where: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "console_on", lambda stream: where)
    sentences = {"all jobs": [f"output_score: {REASON}."]}
    compare._print(["failed: killed"], [("seed", "0", SEEDS)], sentences, Path("both"))
    whole = ("failed: killed", f"seed: 0 | {SEEDS}", *sentences["all jobs"])
    assert assert_whole(where, *whole).endswith("\nResults: both\n")


def test_words_that_were_tried(where: Console) -> None:
    run = word_tables(2, of_concept=False)
    row: dict[str, Any] = {"word": "zebra", "reason": REASON}
    tried = WORDS.frame([*run.words.to_dict("records"), row])
    run = dataclasses.replace(run, words=tried)
    print_summary(run, summarise(run), Path("run"), where)
    text = assert_whole(where, LONG, REASON, apart=program())
    assert text.count("unsteered  ") == text.count("steered    ") == 2


@pytest.fixture(scope="module")
def rated() -> tuple[RunTables, dict[str, Any]]:
    """A run toward the concepts of a set, and its summary with Table 1."""
    run = rated_tables()
    answer = table1.answer([Series("all", ["0"], run)], StudyConfig("table1"))
    tables = {
        name: table.astype(object).where(table.notna(), None).to_dict("records")
        for name, table in answer.tables.items()
    }
    study = {"name": "table1", "sentences": answer.sentences, "tables": tables}
    return run, summarise(run) | {"study": study}


def test_a_table_of_methods(where: Console, rated: tuple[RunTables, dict[str, Any]]) -> None:
    run, summary = rated
    print_summary(run, summary, Path("run"), where)
    text = assert_whole(where, *summary["study"]["sentences"])
    rows = next(iter(summary["study"]["tables"].values()))
    assert len(rows) > 5
    words = text.replace(",", " ").split()
    for row in rows:
        assert set(str(row["method"]).split()) <= set(words)
