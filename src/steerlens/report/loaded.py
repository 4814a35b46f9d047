"""`steerlens.load_run(DIR)`: a finished run in Python and in a notebook, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.analysis.ranking import best_features
from steerlens.analysis.summary import summarise
from steerlens.errors import SteerlensError, refuses_misfits
from steerlens.report.page.overview import run_sentences, run_title
from steerlens.results import PAGE_FILE, SUMMARY_FILE
from steerlens.results.folder import RunTables, read_settings, read_tables, unfinished
from steerlens.results.text import number, visible, visible_token, visible_tokens
from steerlens.storage.files import read_json

if TYPE_CHECKING:
    import pandas as pd

SHOWN_FEATURES = 10
"""Rows of the table of best features in a notebook."""


@dataclass(frozen=True, repr=False)
class FeatureOfRun:
    """One feature of a run: its scores, and what steering with it wrote."""

    row: Mapping[str, Any]
    """Its row of the table of features."""
    generations: pd.DataFrame
    """Its texts, those of its controls among them."""
    steering: pd.DataFrame
    """Its means at the best factor."""
    examples: pd.DataFrame
    """Texts that it fires on."""
    neighbours: pd.DataFrame
    """Features whose decoder directions are near."""

    def __repr__(self) -> str:
        row = self.row
        scores = ", ".join(
            f"{title} {number(row[name], '.3g')}"
            for name, title in (("output_score", "S_out"), ("input_score", "S_in"))
            if number(row[name], "") != "-"
        )
        writes = visible_tokens(row["logit_lens_tokens"], 4)
        return f"<layer {row['layer']}, feature {row['feature']}: {scores}; writes {writes}>"


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run's tables, settings and summary."""

    folder: Path
    tables: RunTables
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def features(self) -> pd.DataFrame:
        """The table of features."""
        return self.tables.features

    @property
    def generations(self) -> pd.DataFrame:
        """The table of texts; empty where nothing was steered."""
        return self.tables.generations

    @property
    def steering(self) -> pd.DataFrame:
        """The table of steered features; empty where nothing was steered."""
        return self.tables.steering

    @property
    def page(self) -> Path | None:
        """`report.html`; None where the run has none."""
        path = self.folder / PAGE_FILE
        return path if path.is_file() else None

    @refuses_misfits
    def figures(self) -> dict[str, Path]:
        """Give the PNG files of the run's figures, by name."""
        return {path.stem: path for path in sorted((self.folder / "figures").glob("*.png"))}

    @refuses_misfits
    def feature(self, layer: int, id: int) -> FeatureOfRun:
        """Give all that the run knows of one feature.

        Raises:
            SteerlensError: the run has no such feature.
        """
        for name, value in (("layer", layer), ("id", id)):
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise SteerlensError(f"{name}={value!r} is not an integer.")

        def of(frame: pd.DataFrame) -> pd.DataFrame:
            return frame.loc[(frame["layer"] == layer) & (frame["feature"] == id)]

        rows = of(self.features).to_dict("records")
        if not rows:
            layers = ", ".join(map(str, sorted(set(self.features["layer"].tolist()))))
            n = len(self.features)
            raise SteerlensError(
                f"{self.folder} has no feature {id} at layer {layer}; it has {n:,} "
                f"features at layer{'s' * (',' in layers)} {layers or 'none'}."
            )
        tables = self.tables
        return FeatureOfRun(
            {str(name): value for name, value in rows[0].items()},
            *map(of, (tables.generations, tables.steering, tables.examples, tables.neighbours)),
        )

    def __repr__(self) -> str:
        state = f"; {self.tables.unfinished}" if self.tables.unfinished else ""
        n = len(self.features)
        counted = f"{n:,} feature{'s' * (n != 1)}"
        return f"<run {self.folder}: {run_title(self.summary)}, {counted}{visible(state)}>"

    def _repr_html_(self) -> str:
        """Show the run in a notebook: what came out, and the best features."""
        sentences = "".join(
            f"<li>{escape(visible(line))}</li>" for line in run_sentences(self.tables, self.summary)
        )
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td>{escape(cell)}</td>"
                for cell in (
                    str(row["layer"]),
                    str(row["feature"]),
                    number(row["output_score"], ".3g"),
                    number(row["input_score"], ".3g"),
                    visible_token(row["output_token"]),
                    visible_tokens(row["logit_lens_tokens"], 6),
                )
            )
            + "</tr>"
            for row in best_features(self.features, SHOWN_FEATURES).to_dict("records")
        )
        titles = ("layer", "feature", "S_out", "S_in", "token", "promotes")
        head = "".join(f"<th>{title}</th>" for title in titles)
        state = self.tables.unfinished
        warning = f"<p><b>{escape(visible(state))}</b></p>" if state else ""
        return (
            f"<h4>{escape(run_title(self.summary))}</h4>{warning}<ul>{sentences}</ul>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


@refuses_misfits
def load_run(folder: str | Path) -> LoadedRun:
    """Load the run in `folder`: tables, configuration and summary, without a model.

    Raises:
        SteerlensError: it holds no run, or a file can't be read; in one sentence.
    """
    if not isinstance(folder, str | Path):
        raise SteerlensError(f"load_run() takes a run's folder, not {folder!r}.")
    folder = Path(folder)
    if not folder.is_dir():
        raise SteerlensError(f"there is no folder {visible(str(folder))}.")
    tables = replace(read_tables(folder), unfinished=unfinished(folder))
    summary = read_json(folder / SUMMARY_FILE)
    if not isinstance(summary, dict) or "overall" not in summary:  # not written yet, or a sweep's
        summary = summarise(tables)
    return LoadedRun(folder, tables, read_settings(folder), summary)
