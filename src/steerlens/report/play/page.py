"""The page that `steerlens play` serves: that of a run, or of features that have no score yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steerlens.analysis.summary import summarise
from steerlens.report.page import run_page
from steerlens.report.page.cards import card_order, cards, n_in_the_page
from steerlens.report.page.contents import Overview, Page
from steerlens.report.page.render import write_html
from steerlens.report.page.scores import feature_table
from steerlens.report.play import Live
from steerlens.results.folder import RunTables
from steerlens.results.text import visible


def write_play_page(
    tables: RunTables, live: Live, subject: str, run: Path | None, folder: Path
) -> Path:
    """Write `report.html`, and its cards beside it, with the card that steers.

    Args:
        tables: of the run, or the features alone.
        live: what the page has to know to ask.
        subject: the subject's name.
        run: the run's folder; None = there is no run.
        folder: where the page goes, none of a run's.
    """
    if run is None:
        page = _without_run(tables, subject)
    else:
        page = run_page(tables, summarise(tables) | {"study": None}, run)
    order = card_order(tables)
    with_card = replace(page, live=live)
    return write_html(with_card, cards(tables, order), n_in_the_page(tables, order), folder)


def _without_run(tables: RunTables, subject: str) -> Page:
    layers = sorted(set(tables.features["layer"].tolist()))
    return Page(
        title=visible(subject),
        overview=Overview(
            kind="play",
            question=visible(
                f"All {len(tables.features):,} features at layer{'s' * (len(layers) > 1)} "
                f"{', '.join(map(str, layers))}, each with the tokens that it promotes. None is "
                "scored here: steerlens play DIR shows the page of a run, with the scores of its "
                "features."
            ),
            sentences=[],
            notes=[],
            state="done",
            command=None,
            facts=[],
        ),
        features=feature_table(tables),
    )
