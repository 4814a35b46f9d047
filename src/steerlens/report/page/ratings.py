"""The page's part on Table 1: how texts of each method were rated, with some of the texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.config.schema import STEERED_BY
from steerlens.report.page.cards import text_lines
from steerlens.report.page.contents import RatedArm, RatedText, Ratings, plain
from steerlens.results import EVALUATING, SCORES
from steerlens.results.folder import RunTables
from steerlens.results.text import visible

TEXTS = 60
"""Rated texts of each method and layer that are shown."""

ASPECTS = [
    f"{kind}_{aspect}"
    for kind in ("llm", "lexical")
    for aspect in ("concept", "instruction", "fluency")
]


def ratings(tables: RunTables, study: Mapping[str, Any] | None) -> Ratings | None:
    """Table 1 of the run's study, and texts at the factors that were chosen; None without any."""
    rated = tables.ratings
    if not len(rated):
        return None
    rows = ((study or {}).get("tables") or {}).get("table1") or []
    texts = [*_texts(tables)]
    return Ratings(_tables(rows), texts, len(rated))


def _tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[RatedArm]]:
    """Give the table's numbers, by the judge and aggregation that they are of."""
    by_title: dict[str, list[RatedArm]] = {}
    for row in rows:
        for name, value in row.items():
            start, _, layer = name.rpartition("_layer_")
            is_rating = start.startswith(("llm_", "lexical_")) and layer.isdigit()
            if not is_rating or plain(value) is None:
                continue
            kind, _, aggregation = start.partition("_")
            title = f"{kind} rating, {aggregation.replace('_', ' ')}"
            by_title.setdefault(title, []).append(
                RatedArm(
                    method=_method_title(str(row["method"])),
                    layer=int(layer),
                    value=float(value),
                    low=plain(row.get(f"{name}_low")),
                    high=plain(row.get(f"{name}_high")),
                    concepts=row.get(f"{name}_concepts"),
                )
            )
    return by_title


def _method_title(method: str) -> str:
    """Give a row's name with the titles of scores: `SAE (S_out ≥ 0.01)`."""
    for name, score in SCORES.items():
        method = re.sub(rf"\b{name}\b", score.title, method)
    return visible(method.replace(" >= ", " ≥ "))


def _texts(tables: RunTables) -> list[RatedText]:
    """Texts that results are reported on; of every method and layer those of the first concepts."""
    evaluated = tables.ratings.loc[tables.ratings["split"] == EVALUATING]
    order = {name: at for at, name in enumerate(STEERED_BY)}
    first = evaluated.groupby(["layer", "method"], sort=False).head(TEXTS).to_dict("records")
    return [
        RatedText(
            method=visible(str(row["method"])),
            layer=row["layer"],
            concept=visible(str(row["concept"])),
            prompt=text_lines(str(row["prompt"])),
            factor=row["factor"],
            text=text_lines(row["text"]) if isinstance(row["text"], str) else "",
            ratings=[
                (name.replace("_", " "), plain(row[name]))
                for name in ASPECTS
                if name in row and plain(row[name]) is not None
            ],
        )
        for row in sorted(first, key=lambda row: (row["layer"], order.get(row["method"], 99)))
    ]
