"""Questions that a run or a sweep answers, from its tables alone: one module each.

A study is a module with a docstring and `answer(series, config)`; `study.name` chooses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.analysis.resampling import Estimate
from steerlens.analysis.series import Series
from steerlens.config.registry import load_part
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.results.text import csv_text
from steerlens.storage.files import write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Answer:
    """What a study has found."""

    sentences: Sequence[str]
    """The answer, what the data can't tell, and what was left out."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """By name, the one to show first; an interval of the column x is x_low, x_high."""
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    """What draws them, by name."""


class Study(Protocol):
    """A module of this room."""

    def answer(self, series: Sequence[Series], config: StudyConfig) -> Answer:
        """Return the answer from `series`, which differ in their settings.

        Raises:
            SteerlensError: they can't answer the question; in one sentence.
        """
        ...


def interval_columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """Return the columns of an estimate in a study's table: `name`, `name_low`, `name_high`."""
    value, low, high = estimate or (None, None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def write_answer(
    series: Sequence[Series], folder: Path
) -> tuple[dict[str, Any] | None, dict[str, list[Path]]]:
    """Return answers the question that `series` were made for: `NAME.csv` for every table, and
    figures.

    Results that can't answer it lose nothing: the reason stands in the place of the answer.

    Returns:
        What the summary says of it, None if nothing was asked, and the figures' files by name.
    """
    config = series[0].tables.study if series else StudyConfig()
    if config.name is None:
        return None, {}
    try:
        study: Study = load_part("studies", config.name)
        result = study.answer(series, config)
    except SteerlensError as error:
        result = Answer([f"The study {config.name} has no answer: {error}"])
    for name, table in result.tables.items():
        write_text(folder / f"{name}.csv", csv_text(table))
    rows = {
        name: table.astype(object).where(table.notna(), None).to_dict("records")
        for name, table in result.tables.items()
    }
    summary = {
        "name": config.name,
        "sentences": list(result.sentences),
        "tables": rows,
        "figures": list(result.figures),
    }
    return summary, _draw(result.figures, folder)


def _draw(figures: Mapping[str, Callable[[], Figure]], folder: Path) -> dict[str, list[Path]]:
    from steerlens.report.figures import FIGURES_FOLDER, style

    drawn = {}
    for name, draw in figures.items():
        with style.look():
            drawn[name] = style.save(draw(), folder / FIGURES_FOLDER, name)
    return drawn
