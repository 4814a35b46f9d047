"""One number for a whole run, for a sweeper to optimise: `objective=NAME`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steerlens.config.schema import OBJECTIVES
from steerlens.errors import unknown

if TYPE_CHECKING:
    import pandas as pd

OUTPUT = "0.1"
"""From this S_out on a feature is an output feature; as the summary writes it."""


PAYOFFS = {
    "payoff": "over_unfiltered",
    "payoff_within_layers": "over_unfiltered_within_layers",
}
"""What the summary calls the ratios that are objectives."""


def objective(name: str, features: pd.DataFrame, summary: Mapping[str, Any]) -> float:
    """Return the objective `name` of a run, from its table of features and its summary.

    - `mean_output_score`, `mean_input_score`: over the features that have it
    - `output_features`: the share of features with S_out >= 0.1
    - `hybrid_ratio`: hybrid features beside those that independent scores would give
    - `success`, `concept_success`: mean over features at their best factor
    - `success_per_perplexity`: that success over how many times the unsteered perplexity it takes
    - `payoff`: success of the features with S_out >= 0.1 over that of all
    - `payoff_within_layers`: the same over that of as many features of each layer

    NaN where the run has nothing to measure it on.
    """
    value: Any
    if name in ("mean_output_score", "mean_input_score"):
        value = features[name.removeprefix("mean_")].dropna().astype(float).mean()
    elif name == "output_features":
        value = summary["overall"][f"output_score_at_least_{OUTPUT}"]
    elif name == "hybrid_ratio":
        value = (summary["hybrids"] or {}).get("ratio")
    else:
        value = _of_steering(name, summary["steering"] or {})
    return math.nan if value is None else float(value)


def _of_steering(name: str, steering: Mapping[str, Any]) -> float | None:
    if ratio := PAYOFFS.get(name):
        payoff = steering.get("payoff", {}).get(OUTPUT) or {}
        return (payoff.get(ratio) or {}).get("value")
    best, unsteered = steering.get("best_factor", {}), steering.get("unsteered", {})
    if name == "success_per_perplexity":
        success, perplexity = best.get("success_20"), best.get("perplexity")
        return success * unsteered["perplexity"] / perplexity if perplexity else None
    columns = {"success": "success_20", "concept_success": "concept_success"}
    if name not in columns:
        raise unknown("objective", name, OBJECTIVES)
    return best.get(columns[name])
