"""The tables that a run writes: one schema for every run.

Each column has its Arrow type and a sentence that says what it holds (`tables/`); the reference in
the documentation is made from these.
"""

from __future__ import annotations

from steerlens.results.table import Column, Table
from steerlens.results.tables.columns import SUBJECT
from steerlens.results.tables.concepts import CHOOSING, CONCEPTS, EVALUATING, RATINGS
from steerlens.results.tables.features import (
    CARDS,
    EXAMPLES,
    FEATURES,
    NEIGHBOURS,
    NULL_SCORES,
    SAES,
    SCORES,
    Score,
    promoted_ids,
)
from steerlens.results.tables.steering import (
    CAPABILITY,
    COVERAGE,
    GENERATIONS,
    STEERING,
    WORDS,
    features_alone,
)

__all__ = [
    "CAPABILITY",
    "CARDS",
    "CHOOSING",
    "CONCEPTS",
    "COVERAGE",
    "EVALUATING",
    "EXAMPLES",
    "FEATURES",
    "GENERATIONS",
    "NEIGHBOURS",
    "NULL_SCORES",
    "PAGE_DATA",
    "PAGE_FILE",
    "RATINGS",
    "REPORT_FILE",
    "SAES",
    "SCORES",
    "STEERING",
    "SUBJECT",
    "SUMMARY_FILE",
    "TABLES",
    "WORDS",
    "Column",
    "Score",
    "Table",
    "features_alone",
    "promoted_ids",
]

REPORT_FILE, SUMMARY_FILE = "report.md", "summary.json"

PAGE_FILE, PAGE_DATA = "report.html", "report.data"
"""The page, and the folder of what it loads when a card is opened."""

TABLES = (
    *(FEATURES, SAES, NULL_SCORES, COVERAGE, CONCEPTS, RATINGS),
    *(GENERATIONS, STEERING, CAPABILITY, WORDS, CARDS, EXAMPLES, NEIGHBOURS),
)
"""All that a run may write."""
