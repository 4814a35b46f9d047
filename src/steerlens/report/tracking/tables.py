"""What W&B is shown of a run's tables: numbers by factor, and rows that are safe to show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steerlens.analysis.factors import by_factor
from steerlens.results import FEATURES, features_alone
from steerlens.results.folder import RunTables
from steerlens.results.text import visible, visible_token, visible_tokens

if TYPE_CHECKING:
    import pandas as pd

NOT_SHOWN = ("logit_lens_token_ids", "output_score_by_prompt", "token_ids")
"""Columns that nobody reads in a table."""


def table_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows for W&B: the columns that are filled, with tokens as they can be shown."""
    filled = frame.columns[frame.notna().any().tolist()]
    names = [name for name in filled if name not in NOT_SHOWN]
    return [
        {name: _cell(name, row[name]) for name in names}
        for row in frame.loc[:, names].to_dict("records")
    ]


def _cell(name: str, value: Any) -> Any:
    if name == "output_token":
        return visible_token(value)
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bool | int | float):
        return value
    return visible_tokens(value, 20) if hasattr(value, "__len__") else None


CURVES = ("success_20", "perplexity", "degeneracy")

TEXTS = (
    *("layer", "feature", "factor", "prompt", "text", "success_20", "perplexity", "degeneracy"),
    *("first_step_kl", "kl", "relative_dose", "stopped_by", "near_ties"),
)
"""Columns of the table of texts."""


def factor_curves(generations: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for every factor, means over the features (controls left out)."""
    texts = by_factor(features_alone(generations))
    return [
        {"factor": factor, **{f"by_factor/{name}": rows[name].mean() for name in CURVES}}
        for factor, rows in texts.groupby("factor")
    ]


def text_rows(tables: RunTables, n: int) -> list[dict[str, Any]]:
    """Return at most `n` texts of the features with most success, at factor 0 and at the best
    one.
    """
    keys = list(FEATURES.keys)
    steering, texts = (features_alone(table) for table in (tables.steering, tables.generations))
    best = steering.loc[steering["success_20"].notna(), [*keys, "best_factor", "success_20"]]
    best = best.sort_values(["success_20", "layer", "feature"], ascending=[False, True, True])
    both = best.head(n).drop(columns="success_20").merge(texts, on=keys)
    rows = both.loc[(both["factor"] == 0) | (both["factor"] == both["best_factor"])]
    return table_rows(rows.head(n)[list(TEXTS)])


def answer_rows(summary: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of the study that the summary tells of, by `study/NAME`; none if there
    is none.
    """
    tables = (summary.get("study") or {}).get("tables") or {}
    return {
        f"study/{name}": [{key: _cell(key, value) for key, value in row.items()} for row in rows]
        for name, rows in tables.items()
    }


def flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers and names of `summary.json` outside its lists, keyed `a.b`."""
    leaves: dict[str, Any] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            leaves |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
        elif isinstance(value, bool | int | float | str):
            leaves[key] = value
    return leaves
