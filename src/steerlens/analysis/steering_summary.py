"""What the tables of steering say: a section of `summary.json`, and its sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steerlens.analysis.equal_share import payoff_at_equal_share, surely_better
from steerlens.analysis.factors import MEANS, choice_counts
from steerlens.analysis.null_criteria import beside_null
from steerlens.analysis.payoff import (
    SHARES,
    control_arm,
    criteria,
    payoff,
    payoff_beyond_unsteered,
    payoff_by_layer,
    threshold_curve,
)
from steerlens.analysis.resampling import FEWEST, mean_or_none, plain
from steerlens.results import features_alone
from steerlens.results.folder import RunTables
from steerlens.results.text import counted, number, visible, with_interval

if TYPE_CHECKING:
    import pandas as pd

MOVED = 1e-7
"""A divergence of the first step (nats) up to this may be rounding."""

COMPARED = SHARES.index(0.25)
"""The share of the features by which the criterion that selects best is named."""


def steering_summary(tables: RunTables, thresholds: Iterable[float]) -> dict[str, Any] | None:
    """Return what was steered, with what success, and what selecting features would have bought.

    Means are over features (controls left out) at their best factor, those without steering over
    the same features; `decided` are the means of those with success at some factor. None where
    nothing was steered.
    """
    steering, texts = tables.steering, tables.generations
    of_features = features_alone(steering)
    if of_features.empty:
        return None
    with_factor = of_features.loc[of_features["best_factor"].notna()]
    decided = with_factor.loc[~with_factor["undecided"].fillna(value=False)]
    near_ties = texts["near_ties"].dropna().to_numpy(dtype=int)
    kl = texts.loc[texts["factor"] != 0, "first_step_kl"].dropna()
    share = SHARES[COMPARED]
    tried = beside_null(tables).steering
    better = surely_better(payoff_at_equal_share(tried, [share]), share)
    return {
        "features": len(of_features),
        "texts": len(texts),
        "without_factor": len(of_features) - len(with_factor),
        **_undecided(tables),
        "best_factor": {name: mean_or_none(with_factor[name]) for name in MEANS},
        "decided": {name: mean_or_none(decided[name]) for name in MEANS},
        "unsteered": {
            name: mean_or_none(with_factor[f"{name}_unsteered"])
            for name in ("success_20", "perplexity")
        },
        "payoff": {f"{t:g}": _payoff(steering, t) for t in thresholds},
        "threshold_curve": [plain(point) for point in threshold_curve(steering)],
        "criteria": {
            "shares": list(SHARES),
            "scores": [
                {
                    **plain(criterion),
                    "better_reversed": criterion.better_reversed,
                    "surely_better": criterion.score in better,
                }
                for criterion in criteria(tried)
            ],
        },
        "control": plain(control_arm(steering)),
        "near_ties": {"texts": int((near_ties > 0).sum()), "tokens": int(near_ties.sum())},
        "stopped_by": dict(sorted(Counter(texts["stopped_by"].dropna().tolist()).items())),
        "empty_texts": texts["text"].dropna().tolist().count(""),
        # Whether steering changed a next-token distribution; null where that wasn't measured.
        "moved": bool((kl > MOVED).any()) if len(kl) else None,
    }


def steering_explanation(
    summary: Mapping[str, Any], display: Callable[[str], str] = visible
) -> list[str]:
    """Return what the section says, in a few sentences; `display` makes names of scores safe to
    show.
    """
    n, decided = summary["features"], summary["features"] - summary["without_factor"]
    lines: list[str] = []
    if summary["moved"] is False:
        lines.append(
            "Steering moved no logit: in no text does the first steered next-token distribution "
            f"differ from the unsteered one (KL > {MOVED:g}), so no number below is its effect."
        )
    steered, texts = counted(n, "feature"), counted(summary["texts"], "text")
    where = f" in {texts}" if summary["texts"] else ""  # a table of texts may be missing
    lines.append(f"{steered} {'was' if n == 1 else 'were'} steered{where}.")
    best, unsteered = summary["best_factor"], summary["unsteered"]
    if decided:
        success, unsteered_success, perplexity, unsteered_perplexity = (
            number(means[name], ".3g")
            for name in ("success_20", "perplexity")
            for means in (best, unsteered)
        )
        lines.append(
            f"At the best factor mean success@20 is {success} (unsteered "
            f"{unsteered_success}) and mean perplexity {perplexity} "
            f"(unsteered {unsteered_perplexity})."
        )
    lines += [
        _payoff_sentence(threshold, payoff_of)
        for threshold, payoff_of in summary["payoff"].items()
        if payoff_of and payoff_of["selected"] < decided
    ]
    lines += _criterion_sentence(summary["criteria"]["scores"], display)
    if control := summary["control"]:
        pairs = counted(control["pairs"], "pair")
        lines.append(
            f"Random directions of the same norm have {_estimate(control['control'])} where the "
            f"features have {_estimate(control['features'])}: "
            + (
                f"a difference of {_estimate(control['difference'])} over {pairs}."
                if control["pairs"] >= FEWEST
                else f"{pairs} can't tell them apart (it takes {FEWEST})."
            )
        )
    for name, meaning in UNDECIDED:
        if not summary[name]:
            continue
        without = summary["decided"]["success_20"] if name == "without_success" else None
        line = f"{meaning}: {summary[name]:,} of {counted(n, 'feature')}"
        if without is not None:
            line += f"; the others have mean success@20 {number(without, '.3g')}"
        lines.append(f"{line}.")
    if near := summary["near_ties"]["texts"]:
        lines.append(
            f"In {near:,} of {texts} rounding could have decided a token: on another machine they "
            "may read differently."
        )
    if summary["empty_texts"]:
        lines.append(f"{summary['empty_texts']:,} of {texts} have no character.")
    return lines


def payoff_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the payoff at every threshold as a table: pooled, within layers, and in each layer.

    Success is counted as such and beyond the unsteered texts. Of one layer alone there are only the
    pooled rows, since the others are the same.

    Args:
        summary: the part of `summary.json` on steering.
    """
    rows: list[dict[str, Any]] = []
    for threshold, pooled in summary["payoff"].items():
        if pooled is None:
            continue
        layers = pooled["by_layer"]
        features = sum(layer["features"] for layer in layers)
        kinds = [("all", pooled, ""), ("within layers", pooled, WITHIN)]
        if beyond := pooled["beyond_unsteered"]:
            kinds += [(f"{name}, {BEYOND}", beyond, kind) for name, _, kind in kinds]
        rows += [
            _payoff_row(threshold, name, features, row, kind)
            for name, row, kind in kinds
            if len(layers) > 1 or kind != WITHIN
        ]
        if len(layers) > 1:
            rows += [
                _payoff_row(threshold, str(layer["layer"]), layer["features"], layer["payoff"])
                for layer in layers
            ]
    return rows


def curve_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the threshold curve as a table, pooled and within layers; without empty selections."""
    return [
        {
            "threshold": point["threshold"],
            "selected": point["selected"],
            "undecided": point["undecided"],
            **_columns("success", point["success"]),
            "success_decided": point["success_decided"],
            "random": point["random"]["mean"],
            "random_within_layers": point["random_within_layers"]["mean"],
            **_columns("payoff", point["over_unfiltered"]),
            **_columns("payoff_within_layers", point["over_unfiltered_within_layers"]),
        }
        for point in summary["threshold_curve"]
        if point["selected"]
    ]


WITHIN = "_within_layers"
BEYOND = "beyond unsteered"


def _payoff_row(
    threshold: str, layer: str, features: int, row: Mapping[str, Any] | None, kind: str = ""
) -> dict[str, Any]:
    return {
        "threshold": float(threshold),
        "layer": layer,
        "features": features,
        "selected": row["selected"] if row else 0,
        **_columns("success", row and row["success"]),
        "unfiltered": row and row[f"unfiltered{kind}"],
        "random": row and row[f"random{kind}"]["mean"],
        **_columns("payoff", row and row[f"over_unfiltered{kind}"]),
    }


def _columns(name: str, estimate: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Return an estimate as columns; null where there is none."""
    estimate = estimate or {}
    return {
        name: estimate.get("value"),
        f"{name}_low": estimate.get("low"),
        f"{name}_high": estimate.get("high"),
    }


def _payoff(steering: pd.DataFrame, threshold: float) -> dict[str, Any] | None:
    """Return the pooled payoff and the one within layers, both beyond unsteered texts, and those of
    each layer; None of nothing.
    """
    at_threshold = payoff(steering, threshold=threshold)
    if at_threshold is None:
        return None
    layers = payoff_by_layer(steering, threshold=threshold)
    return {
        **plain(at_threshold),
        "beyond_unsteered": plain(payoff_beyond_unsteered(steering, threshold=threshold)),
        "by_layer": [plain(layer) for layer in layers],
    }


UNDECIDED = (
    ("without_factor", "Without a best factor, as none may be chosen (left out of all means)"),
    (
        "without_success",
        "Undecided, without success at any factor that may be chosen (the smallest is taken)",
    ),
    ("tied", "With several equally good factors (the smallest of these is taken)"),
)
"""Counts of features that are only told where there are any."""


def _undecided(tables: RunTables) -> dict[str, int | None]:
    """Count undecided rows; null where it isn't known how factors were chosen."""
    names = ("without_success", "tied")
    if tables.choice is None:
        return dict.fromkeys(names)
    texts = tables.generations
    counts = choice_counts(features_alone(texts), tables.choice)
    return {name: getattr(counts, name) for name in names}


def _payoff_sentence(threshold: str, row: Mapping[str, Any]) -> str:
    ratio, n = row["over_unfiltered"], row["selected"]
    sentence = (
        f"The {counted(n, 'feature')} with S_out >= {threshold} {'has' if n == 1 else 'have'} "
        f"mean success@20 {_estimate(row['success'])}, all have {row['unfiltered']:.3g}"
    )
    if not ratio:
        return f"{sentence}."
    if n < FEWEST:
        return f"{sentence}; so few say nothing of what selecting them buys (it takes {FEWEST})."
    within, beyond = row["over_unfiltered_within_layers"], row["beyond_unsteered"] or {}
    is_of_layers = len(row["by_layer"]) > 1
    sentence += f": {_estimate(ratio, ' times')}."
    if is_of_layers and within:
        sentence += (
            f" As many features of each layer have {row['unfiltered_within_layers']:.3g}: within "
            f"layers it is {_estimate(within, ' times')}."
        )
    names = ("over_unfiltered", "over_unfiltered_within_layers")[: 1 + is_of_layers]
    ratios = [_estimate(beyond[name], " times") for name in names if beyond.get(name)]
    if len(ratios) < len(names):
        return sentence
    added = " and within layers ".join(ratios)
    return f"{sentence} Of the tokens that steering adds to the unsteered texts it is {added}."


def _criterion_sentence(
    scores: Sequence[Mapping[str, Any]], display: Callable[[str], str]
) -> list[str]:
    """Return which of several scores selects best.

    The best of several noisy ones looks good by chance: it must be surely better than as many
    features at random, with every score that was tried counted (`surely_better`).
    """
    tried = [score for score in scores if score["highest"][COMPARED]]
    if len(scores) < 2 or not tried:
        return []
    size = tried[0]["highest"][COMPARED]["selected"]
    if size < FEWEST:
        return [
            f"{SHARES[COMPARED]:.0%} of the features, {size}, are too few to say which of "
            f"{len(scores)} scores selects best: it takes {FEWEST}."
        ]
    better = [score for score in tried if score["surely_better"]]
    if not better:
        return [
            f"None of {len(scores)} scores surely selects better features than as many at random."
        ]
    best = max(better, key=lambda score: score["highest"][COMPARED]["success"]["value"])
    payoff = best["highest"][COMPARED]
    return [
        f"Of {len(scores)} scores the highest {display(best['score'])} selects best: "
        f"{counted(payoff['selected'], 'feature')} ({SHARES[COMPARED]:.0%}) with mean success@20 "
        f"{_estimate(payoff['success'])}, where all have {payoff['unfiltered']:.3g} and as many at "
        f"random {payoff['random']['low']:.3g} to {payoff['random']['high']:.3g}."
    ]


def _estimate(estimate: Mapping[str, Any], unit: str = "") -> str:
    return with_interval(**estimate, spec=".3g", unit=unit, is_named=True)
