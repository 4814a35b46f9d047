from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from steerlens.analysis.summary import summarise
from steerlens.report import terminal
from steerlens.report.concept_page import Line, print_hanging
from steerlens.report.terminal import print_summary, progress
from steerlens.results import FEATURES
from steerlens.results.folder import RunTables
from tests.support.frames import frame, tables


def console(width: int = 80, terminal: bool = False, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, width=width, force_terminal=terminal, color_system=None)


def shown(where: Console) -> str:
    where.file.flush()
    return where.file.buffer.getvalue().decode()  # type: ignore[attr-defined]


def show(run: RunTables, where: Console | None = None, folder: str = "run", **options: Any) -> None:
    print_summary(run, summarise(run), Path(folder), where, **options)


def test_without_a_terminal_progress_is_one_line() -> None:
    where = console()
    with progress(100, "layer 3", console=where) as advance:
        for _ in range(10):
            advance(10)
    assert re.fullmatch(r"layer 3: 100 features in .* s, [\d,.e+]+ features/s\n", shown(where))


def test_a_terminal_gets_a_bar_with_features_per_second() -> None:
    where = console(terminal=True)
    with progress(100, "layer [3]", console=where) as advance:
        advance(50)
        advance(50)
    assert "100/100" in shown(where)
    assert "features/s" in shown(where)
    assert "layer [3]" in shown(where)


def test_units_that_several_methods_go_through_are_counted_once() -> None:
    where = console()
    with progress(2048, "layer 3", console=where, each=3) as advance:
        for _ in range(3):
            advance(2048)
    assert shown(where).startswith("layer 3: 2,048 features in ")


def test_a_failure_inside_progress_prints_no_result() -> None:
    where = console()
    with pytest.raises(ValueError, match="x"), progress(100, "layer 3", console=where):
        raise ValueError("x")
    assert shown(where) == ""


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_and_shows_its_numbers_whole(width: int) -> None:
    where = console(width, terminal=True)
    show(RunTables(frame(range(3), 2000)), where, folder="outputs/demo")
    text = shown(where)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
    assert " 0.99 " in text
    assert "S_out near 1" in text
    assert "outputs/demo" in text


def test_tokens_cannot_drive_the_terminal() -> None:
    where = console(200, terminal=True)
    show(RunTables(frame(range(1), 12)), where, rows=12)
    text = shown(where)
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "[bold␣red]x[/]" in text
    assert "\\x1b[31mred" in text


def test_the_best_feature_comes_first() -> None:
    where = console()
    scores = [0.25, 0.75, 0.5]
    show(RunTables(frame([7], 3, output_score=scores)), where)
    rows = re.findall(r"^\s+7\s+(\d)\s+(\S+)", shown(where), flags=re.M)
    assert rows == [("1", "0.75"), ("2", "0.50"), ("0", "0.25")]


def test_a_run_without_output_scores_says_so() -> None:
    where = console()
    table = FEATURES.frame({"model": "m", "sae": "s", "hook_name": "h", "layer": 0, "feature": [1]})
    show(RunTables(table), where)
    assert shown(where) == "1 feature, none with a score.\nResults: run\n"


def test_missing_ranks_and_tokens_are_dashes_and_empty_columns_are_left_out() -> None:
    where = console()
    some: dict[str, list[Any]] = {
        "output_score": [0.5, 0.25, 0.125],
        "input_score": [None] * 3,
        "output_rank": [None, 3, None],
        "output_probability": [None, 0.75, None],
        "output_token": [None, "a", None],
        "logit_lens_tokens": [None] * 3,
    }
    show(RunTables(frame([7], 3, **some)), where)
    text = shown(where)
    assert re.search(r"layer +feature +S_out +rank +p +token +logit lens", text)
    assert re.search(r"7 +0 +0\.50 +- +- +- +-$", text, re.M)
    assert re.search(r"7 +1 +0\.25 +3 +0\.7500 +a +-$", text, re.M)


def test_an_output_that_is_not_unicode_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show(RunTables(frame([0], 3, output_token=["日本", "é", "a"])))
    import sys

    sys.stdout.flush()
    assert "\\u65e5" in raw.getvalue().decode("ascii")


def test_a_run_without_output_scores_shows_the_best_of_what_it_has() -> None:
    where = console()
    nothing = [None] * 3
    table = frame([7], 3, output_score=nothing, input_score=nothing, mine=[0.25, 0.75, 0.5])
    show(RunTables(table), where)
    text = shown(where)
    assert "Best features by mine" in text
    assert re.findall(r"^\s+7\s+(\d)\s+(\S+)", text, flags=re.M)[0] == ("1", "0.75")


def steered_with(text: str) -> RunTables:
    """A run whose texts say at which factor they were steered, and then `text`."""
    found = tables(success_20=[0.5, None, 3.0, 1.0, 0.0, 2.0] * 2)
    texts = [f" at {one:g} {text}" for one in found.generations["factor"].tolist()]
    return dataclasses.replace(found, generations=found.generations.assign(text=texts))


def test_steered_features_are_shown_with_both_texts_the_best_first() -> None:
    where = console()
    show(steered_with("and so on " * 20), where)
    text = shown(where).partition("Best steered features")[2]
    rows = re.findall(r"^ +(\d) +(\d) .* 2 +(\S+) +30 +at 0 and", text, flags=re.M)
    assert rows == [
        ("0", "2", "3.00"),
        ("1", "2", "3.00"),
        ("0", "5", "2.00"),
        ("1", "5", "2.00"),
        ("0", "3", "1.00"),
    ]
    assert len(re.findall(r"^ +at 2 and", text, flags=re.M)) == 5
    assert "12 features were steered in 192 texts." in text


WORDS = [f"word{n}" for n in range(60)]


@pytest.mark.parametrize(("width", "terminal"), [(60, True), (80, True), (200, True), (80, False)])
def test_nothing_is_cut_at_any_width(width: int, terminal: bool) -> None:
    where = console(width, terminal)
    run = steered_with(" ".join(WORDS))
    lens = [[f"lens{n}" for n in range(8)]] * len(run.features)
    features = run.features.assign(output_token="a long token that is one", logit_lens_tokens=lens)
    study = {
        "name": "criteria",
        "sentences": ["See `steerlens report " + "x" * 70 + "`."],
        "tables": {"made_up": [{f"column_{n}": n / 7 for n in range(40)}]},
    }
    run = dataclasses.replace(run, features=features)
    print_summary(run, summarise(run) | {"study": study}, Path("run"), where)
    text = shown(where)
    assert "\u2026" not in text
    if terminal:  # a word of 70 letters is broken by the terminal itself
        whole = [line for line in text.splitlines() if "x" * 40 not in line]
        assert max(cell_len(line) for line in whole) <= width
    words = text.split()
    for word in (*WORDS, *(f"lens{n}" for n in range(8)), *(f"column_{n}" for n in range(40))):
        assert words.count(word) >= 1, word
    assert "".join(words).count("x" * 70) == 1
    assert "a\u2423long" in text or "a long token that is one" in " ".join(words)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_command_is_never_broken(width: int) -> None:
    where = console(width, terminal=True)
    command = (
        "steerlens experiment=filter model=local 'model.path=/a/long path/to/a model' plan=true"
    )
    print_hanging(where, [Line("  ", Text(command), is_command=True)])
    assert command in shown(where)


def test_texts_cannot_drive_the_terminal() -> None:
    where = console(200, terminal=True)
    found = tables()
    texts = found.generations.assign(text="[bold red]x[/]\x1b[31mred\u202e\n")
    show(dataclasses.replace(found, generations=texts), where)
    text = shown(where)
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "[bold red]x[/]\\x1b[31mred\\u202e\\n" in text


def test_without_a_best_factor_only_the_sentences_are_shown() -> None:
    where = console(200)
    show(tables(best_factor=None, success_20=None), where)
    text = shown(where)
    assert "Best steered features" not in text
    assert "(left out of all means): 12 of 12 features." in text


def test_a_phase_is_told_if_it_took_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, line in ((0.5, ""), (2.5, "loading the model: 2.5 s\n")):
        times = iter((100.0, 100.0 + seconds))
        monkeypatch.setattr(terminal.time, "perf_counter", lambda times=times: next(times))
        stream = io.StringIO()
        with terminal.phase("loading the model", Console(file=stream)):
            pass
        assert stream.getvalue() == line
