from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from steerlens.results import FEATURES
from steerlens.summary import summarise
from steerlens.tables import RunTables
from steerlens.terminal import print_summary, progress
from tests.support.frames import frame


def console(width: int = 80, terminal: bool = False, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, width=width, force_terminal=terminal, color_system=None)


def shown(where: Console) -> str:
    where.file.flush()
    return where.file.buffer.getvalue().decode()  # type: ignore[attr-defined]


def show(tables: RunTables, folder: Path, **options: Any) -> None:
    print_summary(tables, summarise(tables), folder, **options)


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


def test_a_failure_inside_progress_prints_no_result() -> None:
    where = console()
    with pytest.raises(ValueError, match="x"), progress(100, "layer 3", console=where):
        raise ValueError("x")
    assert shown(where) == ""


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_and_shows_its_numbers_whole(width: int) -> None:
    where = console(width)
    show(RunTables(frame(range(3), 2000)), Path("outputs/demo"), console=where)
    text = shown(where)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
    assert " 0.9900 " in text
    assert "S_out near 1" in text
    assert "outputs/demo" in text


def test_tokens_cannot_drive_the_terminal() -> None:
    where = console(200, terminal=True)
    show(RunTables(frame(range(1), 12)), Path("run"), console=where, rows=12)
    text = shown(where)
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "[bold␣red]x[/]" in text
    assert "\\x1b[31mred" in text


def test_the_best_feature_comes_first() -> None:
    where = console()
    scores = [0.25, 0.75, 0.5]
    show(RunTables(frame([7], 3, output_score=scores)), Path("run"), console=where)
    rows = re.findall(r"^\s+7\s+(\d)\s+(\S+)", shown(where), flags=re.M)
    assert rows == [("1", "0.7500"), ("2", "0.5000"), ("0", "0.2500")]


def test_a_run_without_output_scores_says_so() -> None:
    where = console()
    table = FEATURES.frame({"model": "m", "sae": "s", "hook_name": "h", "layer": 0, "feature": [1]})
    show(RunTables(table), Path("run"), console=where)
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
    show(RunTables(frame([7], 3, **some)), Path("run"), console=where)
    text = shown(where)
    assert re.search(r"layer +feature +S_out +rank +p +token +logit lens", text)
    assert re.search(r"7 +0 +0\.5000 +- +- +- +- ", text)
    assert re.search(r"7 +1 +0\.2500 +3 +0\.7500 +a +- ", text)


def test_an_output_that_is_not_unicode_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show(RunTables(frame([0], 3, output_token=["日本", "é", "a"])), Path("run"))
    import sys

    sys.stdout.flush()
    assert "\\u65e5" in raw.getvalue().decode("ascii")


def test_a_run_without_output_scores_shows_the_best_of_what_it_has() -> None:
    where = console()
    nothing = [None] * 3
    table = frame([7], 3, output_score=nothing, input_score=nothing, mine=[0.25, 0.75, 0.5])
    show(RunTables(table), Path("run"), console=where)
    text = shown(where)
    assert "Best features by mine" in text
    assert re.findall(r"^\s+7\s+(\d)\s+(\S+)", text, flags=re.M)[0] == ("1", "0.75")
