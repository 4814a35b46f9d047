"""What a feature's card in `report.html` shows beside the other tables."""

from __future__ import annotations

from steerlens.results import FEATURES, SUBJECT
from steerlens.results.table import Table

WINDOWS = Table(
    file="examples.parquet",
    keys=(*FEATURES.keys, "example"),
    columns={
        **SUBJECT,
        "layer": "int64",
        "feature": "int64",
        "example": "int64",
        "tokens": "list<string>",
        "activations": "list<double>",
    },
)
"""One row per text that a feature fires on, of those whose cards a page has: a few tokens around
the peak, and the feature's activation on each; `example` 0 has the highest."""

NEIGHBOURS = Table(
    file="neighbours.parquet",
    keys=(*FEATURES.keys, "rank"),
    columns={
        **SUBJECT,
        "layer": "int64",
        "feature": "int64",
        "rank": "int64",
        "neighbour": "int64",
        "cosine": "double",
    },
)
"""One row per feature and neighbour: the features of the same SAE whose decoder directions have the
highest cosine with its own, `rank` 0 the nearest."""
