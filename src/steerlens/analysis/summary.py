"""What a run's tables say: `summary.json`, from the tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlens.analysis.agreement import agreement, reproduced
from steerlens.analysis.coverage import coverage_summary
from steerlens.analysis.objectives import objective
from steerlens.analysis.ranking import TIE_DECIMALS, best_features, ranking, top_score
from steerlens.analysis.resampling import FEWEST, LEVEL, adjusted_p_values, plain
from steerlens.analysis.steering_summary import steering_summary
from steerlens.analysis.toward import words_summary
from steerlens.results import SAES
from steerlens.results.folder import RunTables
from steerlens.results.table import names, number_or_none

if TYPE_CHECKING:
    import pandas as pd

THRESHOLDS = (0.01, 0.1)
"""The paper's two lines: below the first a feature hardly steers, from the second on it is an
output feature."""

STEERABLE = THRESHOLDS[1]
"""From this output score on a feature is one to steer with."""

HYBRID = 0.1
"""A hybrid feature has both scores at least this high (paper Section 5)."""

SCORES = ("output_score", "input_score")

RESAMPLES = 10_000


def summarise(tables: RunTables) -> dict[str, Any]:
    """Return what `summary.json` says: scores by layer and overall, the best features, steering."""
    frame, null = tables.features, tables.null_scores
    layers = {int(str(layer)): rows for layer, rows in frame.groupby("layer", sort=True)}
    best, by = best_features(frame, 20), ranking(frame)
    columns = dict.fromkeys([*SCORES, *([by] if by else [])])
    summary = {
        "model": _one_or_all(names(frame, "model")),
        "sae": _one_or_all(names(frame, "sae")),
        "overall": _statistics(frame) | null_statistics(frame, null),
        "layers": [
            {"layer": layer, **_statistics(rows), **null_statistics(rows, null)}
            for layer, rows in layers.items()
        ],
        "hybrids": hybrids(frame),
        "prompt_correlations": prompt_correlations(frame),
        "ranked_by": by,
        "top_score": top_score(frame),
        "best_features": [
            {
                "layer": int(row["layer"]),
                "feature": int(row["feature"]),
                **{name: number_or_none(row[name]) for name in columns},
                "output_token": _or_none(row["output_token"]),
                "logit_lens_tokens": list(_or_none(row["logit_lens_tokens"]) or [])[:5],
            }
            for row in best.to_dict("records")
        ],
        "steering": steering_summary(tables, THRESHOLDS),
        "coverage": coverage_summary(tables.coverage),
        "words": words_summary(tables.words),
        "found": bool(tables.words["reason"].isna().any()) if len(tables.words) else None,
        "reference": _beside(tables),
        "objective": None,
    }
    if tables.objective:
        value = objective(tables.objective, frame, summary)
        summary["objective"] = {"name": tables.objective, "value": value}
    return summary


def _beside(tables: RunTables) -> dict[str, Any] | None:
    """Return what is to be said of the published scores, and how far ours agree with them."""
    if tables.reference is None:
        return None
    theirs = tables.reference
    agreements = [] if theirs.alone else agreement(tables.features, theirs.table)
    return {
        "model": theirs.model,
        "findings": theirs.findings,
        "agreement": [plain(row) for row in agreements],
        "reproduced": {row.score: reproduced(row) for row in agreements},
    }


def _statistics(frame: pd.DataFrame) -> dict[str, Any]:
    """Return counts, quartiles and shares of both scores; null where nothing was scored."""
    statistics: dict[str, Any] = {"features": len(frame)}
    for column in SCORES:
        scores = frame[column].dropna().to_numpy(dtype=float)
        quartiles = np.quantile(scores, [0.25, 0.5, 0.75]).tolist() if len(scores) else [None] * 3
        keys = (f"{column}_q25", f"{column}_median", f"{column}_q75")
        statistics[f"{column}_count"] = len(scores)
        statistics |= dict(zip(keys, quartiles, strict=True))
        for threshold in THRESHOLDS:
            share = float((scores >= threshold).mean()) if len(scores) else None
            statistics[f"{column}_at_least_{threshold:g}"] = share
    examples = frame["input_examples"].dropna().to_numpy(dtype=int)
    statistics["never_fires"] = int((examples == 0).sum()) if len(examples) else None
    return statistics


def null_statistics(frame: pd.DataFrame, null: pd.DataFrame) -> dict[str, Any]:
    """Return the quartiles and shares of the output scores of random directions in the layers of
    `frame`.

    Every layer has the weight that it has among the features with an output score, so that both
    stand for the same layers. Also the share of these features whose p-value is at most 0.05, and
    the share that is told from random directions: the same with p-values corrected for the number
    of features in their layer (Benjamini and Hochberg). Null where there are no random directions,
    or too few for such a p-value.
    """
    keys, name = list(SAES.keys), "output_score_null"
    scored = frame.loc[frame["output_score"].notna()]
    scores = directions = weights = np.zeros(0)
    if len(null):  # of nothing, pandas' joining would be most of a small summary's time
        null = null.merge(scored.groupby(keys).size().rename("features").reset_index(), on=keys)
        scores = null["output_score"].to_numpy(dtype=float)
        directions = null.groupby(keys)["direction"].transform("size").to_numpy(dtype=float)
        weights = null["features"].to_numpy(dtype=float) / directions
    statistics: dict[str, Any] = {f"{name}_count": len(scores)}
    for key, quantile in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
        statistics[f"{name}_{key}"] = (
            float(np.quantile(scores, quantile, weights=weights, method="inverted_cdf"))
            if len(scores)
            else None
        )
    for threshold in THRESHOLDS:
        share = float(np.average(scores >= threshold, weights=weights)) if len(scores) else None
        statistics[f"{name}_at_least_{threshold:g}"] = share
    enough = len(scores) > 0 and 1 / (1 + directions.min()) <= LEVEL
    shares: dict[str, float | None] = {"p": None, "q": None}
    tested = scored.loc[scored["output_score_p"].notna()] if enough else scored.head(0)
    if len(tested):
        tested = tested.astype({"output_score_p": float})
        q_F = tested.groupby(keys)["output_score_p"].transform(adjusted_p_values)
        shares = {
            "p": float((tested["output_score_p"] <= LEVEL).mean()),
            "q": float((q_F <= LEVEL).mean()),
        }
    return statistics | {
        f"output_score_{name}_at_most_{LEVEL:g}": share for name, share in shares.items()
    }


MEANINGS = (
    (
        "output_score",
        "S_out",
        "near 1: amplifying the feature makes one of the tokens that it promotes the next token; "
        f"below {THRESHOLDS[0]:g}: it hardly steers.",
    ),
    (
        "input_score",
        "S_in",
        "near 1: the feature fires hardest on the tokens that it promotes; near 0: on others.",
    ),
)


def explanation(summary: Mapping[str, Any]) -> list[str]:
    """Return what the scores of a run say, in a few sentences."""
    overall = summary["overall"]
    lines: list[str] = []
    top = summary["top_score"]
    if top and top["features"] > 1 and round(top["score"], TIE_DECIMALS) > 0:
        lines.append(
            f"{top['features']:,} features share the highest S_out, "
            f"{top['score']:.{TIE_DECIMALS}f}; of equal ones those that write different words "
            "stand first, and of these those to whose score steering adds most."
        )
    for column, symbol, meaning in MEANINGS:
        if n := overall[f"{column}_count"]:
            low, high = (overall[f"{column}_at_least_{threshold:g}"] for threshold in THRESHOLDS)
            lines += [
                f"{symbol} {meaning}",
                f"Of {n:,} feature{'s' * (n != 1)} {low:.1%} have {symbol} >= {THRESHOLDS[0]:g} "
                f"and {high:.1%} have {symbol} >= {THRESHOLDS[1]:g}; the median is "
                f"{overall[f'{column}_median']:.3g}.",
            ]
            if column == "output_score":
                lines += _null_sentences(overall)
    hybrid = summary["hybrids"]
    if hybrid and hybrid["features"] >= FEWEST:
        lines.append(
            f"S_in and S_out are both at least {HYBRID:g} in {hybrid['hybrid_share']:.1%} of the "
            f"{hybrid['features']:,} features with both; it would be "
            f"{hybrid['hybrid_share_if_independent']:.1%} if they were independent."
        )
    correlations = [
        correlation
        for correlation in summary["prompt_correlations"] or []
        if np.isfinite(correlation)
    ]
    if correlations:
        lines.append(
            f"Under {len(correlations)} prompts S_out correlates with its mean over them by "
            f"{np.median(correlations):.3f} (median; {min(correlations):.3f} to "
            f"{max(correlations):.3f})."
        )
    if overall["never_fires"]:
        lines.append(f"{overall['never_fires']:,} features never fire on the corpus.")
    return lines


def _null_sentences(overall: Mapping[str, Any]) -> list[str]:
    """Return what random directions have in the place of features, if they were scored."""
    n = overall["output_score_null_count"]
    if not n:
        return []
    low, high = (overall[f"output_score_null_at_least_{threshold:g}"] for threshold in THRESHOLDS)
    sentence = (
        f"Of {n:,} random directions with the norms of decoder rows {low:.1%} have S_out >= "
        f"{THRESHOLDS[0]:g} and {high:.1%} have S_out >= {THRESHOLDS[1]:g}; the median is "
        f"{overall['output_score_null_median']:.3g}."
    )
    p, q = (overall[f"output_score_{name}_at_most_{LEVEL:g}"] for name in "pq")
    if p is None or q is None:
        return [sentence]
    return [
        f"{sentence} {p:.1%} of the features have an S_out that at most {LEVEL:.0%} of random "
        f"directions in their layer reach (output_score_p <= {LEVEL:g}; {LEVEL:.0%} would by "
        f"chance); corrected for the number of features in their layer, {q:.1%} are above chance "
        f"(at most {LEVEL:.0%} of these falsely)."
    ]


def hybrids(frame: pd.DataFrame) -> dict[str, Any] | None:
    """Return how often high input and output scores meet in one feature (paper Section 5).

    Of the features with both scores: the share with both >= 0.1, the share that there would be if
    the two had nothing to do with each other, and the ratio of the shares with its 95 % interval
    (bootstrap over features, null of fewer than `FEWEST`). None where no feature has both scores.
    """
    both = frame.loc[frame["input_score"].notna() & frame["output_score"].notna()]
    if both.empty:
        return None
    high_in = both["input_score"].to_numpy(dtype=float) >= HYBRID
    high_out = both["output_score"].to_numpy(dtype=float) >= HYBRID
    cells = np.array([(a & b).mean() for a in (high_in, ~high_in) for b in (high_out, ~high_out)])
    share, expected = _hybrid_shares(cells)
    # Drawing features again is drawing how many fall into each of the four cells.
    drawn = np.random.default_rng(0).multinomial(len(both), cells, size=RESAMPLES) / len(both)
    with np.errstate(divide="ignore", invalid="ignore"):
        again, by_chance = _hybrid_shares(drawn.T)
        ratios = again / by_chance
    ratios = ratios[np.isfinite(ratios)]
    enough = len(both) >= FEWEST and len(ratios)
    interval = np.quantile(ratios, [0.025, 0.975]).tolist() if enough else None
    return {
        "features": len(both),
        "input_share": float(high_in.mean()),
        "output_share": float(high_out.mean()),
        "hybrid_share": float(share),
        "hybrid_share_if_independent": float(expected),
        "ratio": float(share / expected) if expected > 0 else None,
        "ratio_interval": interval,
    }


def _hybrid_shares(cells: np.ndarray) -> tuple[Any, Any]:
    """Return (share of hybrids, the same if independent) from the four cells' shares."""
    both, only_in, only_out, _ = cells
    return both, (both + only_in) * (both + only_out)


def prompt_correlations(frame: pd.DataFrame) -> list[float] | None:
    """Return, for every prompt, the correlation of its scores with the mean over prompts (Appendix
    D).

    None of fewer than `FEWEST` features.
    """
    by_prompt = frame["output_score_by_prompt"].dropna()
    if len(by_prompt) < FEWEST:
        return None
    scores_FP = np.array(by_prompt.tolist(), dtype=float)
    mean_F = scores_FP.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [float(np.corrcoef(column, mean_F)[0, 1]) for column in scores_FP.T]


def _one_or_all(values: list[str]) -> str | list[str] | None:
    return values if len(values) > 1 else values[0] if values else None


def _or_none(value: Any) -> Any:
    return value if isinstance(value, str) or hasattr(value, "__len__") else None
