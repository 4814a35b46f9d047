"""What a study writes and shows, whatever it asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from steerlens.analysis.series import Series
from steerlens.config.registry import load_part, parts_of
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.answer import answer_section, print_answer
from steerlens.report.studies import Answer, write_answer
from steerlens.report.tracking.tables import answer_rows
from steerlens.results.folder import RunTables
from tests.support.frames import frame

pytestmark = pytest.mark.usefixtures("quick_figures")


def asked(name: str | None) -> list[Series]:
    return [Series("a", [], RunTables(frame(), study=StudyConfig(name)))]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that always finds the same."""

    class MadeUp:
        @staticmethod
        def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
            table = pd.DataFrame({"x": [1.5, None], "x_low": [1.0, None], "x_high": [2.0, None]})
            table.insert(0, "release", ["[red]a[/]", "\x1b[31mb"])
            return Answer(["It is *so*."], {"made_up": table}, {"made_up": Figure})

    monkeypatch.setattr("steerlens.report.studies.load_part", lambda kind, name: MadeUp)


@pytest.mark.parametrize("name", parts_of("studies"))
def test_every_study_has_a_module_with_an_answer(name: str) -> None:
    module = load_part("studies", name)
    assert callable(module.answer)
    assert module.__doc__


def test_an_unknown_study_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SteerlensError, match="releases"):
        load_part("studies", "release")


def test_nothing_is_written_where_nothing_was_asked(tmp_path: Path) -> None:
    assert write_answer(asked(None), tmp_path) == (None, {})
    assert write_answer([], tmp_path) == (None, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("made_up")
def test_tables_and_figures_are_files_and_the_summary_has_the_rows(tmp_path: Path) -> None:
    summary, figures = write_answer(asked("releases"), tmp_path)
    assert summary is not None
    assert pd.read_csv(tmp_path / "made_up.csv")["x"].tolist()[0] == 1.5
    assert [path.name for path in figures["made_up"]] == ["made_up.png", "made_up.pdf"]
    assert json.loads(json.dumps(summary))["tables"]["made_up"][1]["x"] is None
    assert list(answer_rows({"study": summary})) == ["study/made_up"]
    assert answer_rows({"study": None}) == {}


@pytest.mark.usefixtures("made_up")
def test_a_number_is_shown_with_its_interval_and_names_are_escaped(tmp_path: Path) -> None:
    summary, _ = write_answer(asked("releases"), tmp_path)
    text = "\n".join(answer_section(summary))
    assert "1.5 (1 to 2)" in text
    assert "\x1b" not in text
    console = Console(record=True, width=60)
    print_answer(summary, console)
    shown = console.export_text()
    assert "1.5 (1 to 2)" in shown
    assert "[red]a[/]" in shown
    assert "It is *so*." in shown


def test_a_long_table_is_in_its_file_and_its_beginning_in_the_report() -> None:
    rows = [{"score": f"s{i}", "x": float(i)} for i in range(40)]
    study = {"name": "criteria", "sentences": [], "tables": {"long": rows, "short": rows[:30]}}
    text = "\n".join(answer_section(study))
    assert "`long.csv`, the first 30 of 40 rows" in text
    assert "`short.csv`\n" in text
    assert text.count("| s29 |") == 2
    assert "| s30 |" not in text


def test_a_study_without_an_answer_says_why_and_loses_nothing(tmp_path: Path) -> None:
    series = [Series("a", [], RunTables(frame().drop(index=range(36)), study=StudyConfig("sizes")))]
    summary, figures = write_answer(series, tmp_path)
    assert summary is not None
    assert summary["sentences"][0].startswith("The study sizes has no answer: it takes a sweep")
    assert figures == {}
