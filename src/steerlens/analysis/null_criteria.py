"""The output score beside random directions, as scores that features can be selected by."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from steerlens.results import SAES
from steerlens.results.folder import RunTables

if TYPE_CHECKING:
    import pandas as pd


def beside_null(tables: RunTables) -> RunTables:
    """Return the tables with the output score's place among its layer's random directions as two
    more scores, where these are known.
    """
    null: Any = tables.null_scores
    if null.empty or not any(tables.features["output_score_p"].notna().tolist()):
        return tables
    keys = list(SAES.keys)
    means = null.groupby(keys)["output_score"].mean().rename("null_mean").reset_index()

    def added(rows: pd.DataFrame) -> pd.DataFrame:
        of_row = rows[keys].merge(means, how="left", on=keys)["null_mean"]
        return rows.assign(
            **{
                "1 - output_score_p": 1 - rows["output_score_p"],
                "output_score - null": rows["output_score"] - of_row.set_axis(rows.index),
            }
        )

    return dataclasses.replace(
        tables, features=added(tables.features), steering=added(tables.steering)
    )
