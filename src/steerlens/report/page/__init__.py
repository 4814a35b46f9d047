"""`report.html`: one page that shows a run, a sweep or a comparison, made from tables alone.

The builders (`overview`, `scores`, `cards`, `concepts`, `ratings`, `joined`) fill `contents.Page`;
`render` makes one file of it that opens from disk, without a network. `assets/` has our style and
scripts, a file for each part of the page; `vendor/` what others wrote, unchanged, with its licence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerlens.config.compose import read_config
from steerlens.errors import SteerlensError
from steerlens.report.concept_page import is_of_a_concept
from steerlens.report.page.cards import card_order, cards, n_in_the_page
from steerlens.report.page.concepts import concept_results
from steerlens.report.page.contents import Page
from steerlens.report.page.joined import (
    answer_figures,
    answer_tables,
    write_comparison_page,
    write_sweep_page,
)
from steerlens.report.page.overview import overview_without_tables, run_overview, run_title
from steerlens.report.page.ratings import ratings
from steerlens.report.page.render import write_html
from steerlens.report.page.scores import feature_table, layer_scores, threshold_points
from steerlens.results.folder import RunTables

__all__ = [
    "run_page",
    "write_comparison_page",
    "write_page_without_tables",
    "write_run_page",
    "write_sweep_page",
]


def write_run_page(tables: RunTables, summary: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of the run in `folder`; gives its path."""
    order = card_order(tables)
    page = run_page(tables, summary, folder)
    return write_html(page, cards(tables, order), n_in_the_page(tables, order), folder)


def write_page_without_tables(why: str, folder: Path) -> Path:
    """Write the page of a run whose tables aren't there or can't be read; gives its path."""
    page = Page(title="A run without results", overview=overview_without_tables(why, folder))
    return write_html(page, (), 0, folder)


def run_page(tables: RunTables, summary: Mapping[str, Any], folder: Path) -> Page:
    """Say what the page of a run shows, but for the features' cards."""
    return Page(
        title=run_title(summary),
        overview=run_overview(tables, summary, folder),
        features=feature_table(tables, _other_lens(tables, folder)),
        ranked_by=summary.get("ranked_by"),
        # Candidates for a concept say nothing of the features of a layer.
        layers=[] if is_of_a_concept(tables) else layer_scores(tables),
        # What selecting by S_out buys isn't asked where features are chosen for a word.
        thresholds=[] if len(tables.words) else threshold_points(summary.get("steering")),
        concepts=concept_results(tables, is_of_a_concept(tables)),
        ratings=(rated := ratings(tables, summary.get("study"))),
        tables=() if rated else answer_tables(summary.get("study")),
        figures=answer_figures(summary.get("study"), folder),
    )


def _other_lens(tables: RunTables, folder: Path) -> str | None:
    """Return the run's lens, where it isn't the logit lens; None where it is, or isn't known."""
    if all(tables.features["promoted_tokens"].isna().tolist()):
        return None
    try:
        return read_config(folder).lens.name
    except SteerlensError:
        return None
