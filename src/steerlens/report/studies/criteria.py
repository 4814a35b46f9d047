"""By which score should features be selected for steering, and do the scores agree?

Every score as a guide (rank correlation with success, success of as many features as each puts
first, with intervals that are simultaneous over all scores), and every two scores beside each
other: Spearman's and Kendall's rank correlation and how many of the first hundred features they
share. Where random directions were scored, the output score also takes part as its place among
them: `1 - output_score_p`, and less the mean of its layer's. The best pair of scores is held
against the best score, both chosen and counted on different features; and every score against
success, concept success, success beyond unsteered texts, success at the same KL, and at the factors
that rule=kl chooses, by itself and beside the output score. Scores agree or not over all scored
features, and guide or not over those that were steered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steerlens.analysis.combined_criteria import Combined, combined_criteria
from steerlens.analysis.criteria_differences import REFERENCE, differences_at_once, payoff_of
from steerlens.analysis.criteria_outcomes import Outcome, outcomes_of
from steerlens.analysis.equal_share import (
    AS_SUCH,
    BEYOND_UNSTEERED,
    POOLED,
    WITHIN_LAYERS,
    EqualShare,
    payoff_at_equal_share,
    surely_better,
)
from steerlens.analysis.null_criteria import beside_null
from steerlens.analysis.payoff import SHARES, Criterion, criteria, scores_of
from steerlens.analysis.rank_correlations import correlations_at_once, rank_correlation
from steerlens.analysis.resampling import FEWEST, LEVEL, spearman, sure, top_weights
from steerlens.analysis.series import Series
from steerlens.analysis.steering_summary import COMPARED
from steerlens.config.schema import SUCCESS, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies import Answer, interval_columns
from steerlens.results import features_alone
from steerlens.results.folder import RunTables
from steerlens.results.text import interval_of, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = 100
"""First features of two scores that are compared, at most a quarter of those that have both: of all
features any two scores share all."""
RESAMPLES = 200
"""Of thousands of features: more would show nothing else."""

TITLES = {name: name.replace("success_", "success@").replace("_", " ") for name in SUCCESS}
"""What sentences call success, by `choice.success`."""

TOLD = 2
"""Scores that agree most, and as many that agree least, are told; the table has all."""

GUIDE = f"success_{SHARES[COMPARED]:g}"


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """Return the scores as guides, the best first, and their agreement; of the first result if
    several.

    Raises:
        SteerlensError: fewer than two scores were computed.
    """
    tables = beside_null(series[0].tables)
    features: Any = tables.features
    scores = [name for name in scores_of(features) if features[name].notna().any()]
    if len(scores) < 2:
        raise SteerlensError("it takes at least two scores, such as score=all.")
    values = {name: tables.features[name].to_numpy(float, na_value=np.nan) for name in scores}
    every = (
        _pair(score, other_score, values)
        for score, other_score in itertools.combinations(scores, 2)
    )
    pairs = [pair for pair in every if pair]
    agreement = pd.DataFrame(pairs)
    steering = tables.steering
    success = tables.choice.success if tables.choice else SUCCESS[0]
    by_score = criteria(steering, success=success) if len(steering) else []
    at_share = payoff_at_equal_share(steering, success=success) if len(steering) else []
    guides = pd.DataFrame(_guides(by_score, surely_better(at_share, SHARES[COMPARED])))
    if len(guides):
        guides = guides.sort_values(GUIDE, ascending=False, ignore_index=True)
    equal = pd.DataFrame(at_share)
    combined = combined_criteria(steering, success=success) if len(steering) else []
    outcomes = list(outcomes_of(tables)) if len(tables.steering) else []
    correlations = _correlations(outcomes)
    differences = _differences(outcomes)
    # Of a single layer both say the same.
    poolings = (POOLED, WITHIN_LAYERS) if features["layer"].nunique() > 1 else (POOLED,)
    notes = [f"Only {series[0].label} is looked at."] if len(series) > 1 else []
    return Answer(
        sentences=[
            *_guide_sentences(by_score, guides, TITLES[success]),
            *_equal_share_sentences(at_share, poolings),
            *_combined_sentences(combined, poolings),
            *_correlation_sentences(correlations, poolings),
            # Within layers, where the layer's level can't be the merit of a score.
            *_difference_sentences(differences, poolings[-1]),
            *_agreement_sentences(agreement),
            *notes,
        ],
        tables={
            "criteria": guides,
            "criteria_agreement": agreement,
            **({"criteria_payoff": equal} if len(equal) else {}),
            **({"criteria_combined": _combined_table(combined)} if combined else {}),
            **({"criteria_outcomes": pd.DataFrame(correlations)} if correlations else {}),
            **({"criteria_differences": pd.DataFrame(differences)} if differences else {}),
        },
        figures=_figures(tables, at_share, agreement, scores, TITLES[success]),
    )


def _equal_share_sentences(at_share: Sequence[EqualShare], poolings: Sequence[str]) -> list[str]:
    """Return which scores keep features that have more success than as many at random, corrected
    for the number of scores.
    """
    share = SHARES[COMPARED]
    sentences = []
    for counted, pooling in itertools.product((AS_SUCH, BEYOND_UNSTEERED), poolings):
        key = (pooling, counted, share)
        compared = [row for row in at_share if (row.pooling, row.counted, row.share) == key]
        compared = sorted(
            (row for row in compared if row.p is not None), key=lambda row: -row.payoff
        )
        better = [row for row in compared if row.is_sure and row.payoff > 1]
        if not compared:
            continue
        names = ", ".join(
            f"{row.score} {with_interval(row.payoff, row.payoff_low, row.payoff_high)}"
            for row in better
        )
        start = (
            f"Keeping {share:.0%} of the features that have a score, {pooling} ({len(compared)} "
            "scores compared at once)"
        )
        if names:
            sentences.append(f"{start}: more {counted} than as many at random has {names}.")
        else:
            sentences.append(f"{start}: none has surely more {counted} than as many at random.")
    return sentences


def _correlations(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the rank correlation of every score with every outcome that there is, with intervals
    that hold for all scores of an outcome at once.
    """
    return [
        {
            "outcome": outcome.name,
            "pooling": pooling,
            "score": row.score,
            "features": row.features,
            **interval_columns("spearman", row.spearman),
            "p": row.p,
        }
        for outcome in outcomes
        for pooling in (POOLED, WITHIN_LAYERS)
        for row in correlations_at_once(
            outcome.scores, outcome.values_N, outcome.layers_N, pooling=pooling
        )
    ]


def _differences(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return what every score is worth less what the output score is, in rank correlation with
    every outcome and in what as large a share by it has of it.
    """
    share = SHARES[COMPARED]
    measures = {"rank correlation": rank_correlation, f"payoff of {share:.0%}": payoff_of(share)}
    return [
        {
            "measure": measure,
            "outcome": outcome.name,
            "pooling": pooling,
            "score": row.score,
            "features": row.features,
            "value": row.value,
            "reference": REFERENCE,
            "reference_value": row.reference_value,
            **interval_columns("difference", row.difference),
            "p": row.p,
        }
        for outcome, (measure, worth), pooling in itertools.product(
            outcomes, measures.items(), (POOLED, WITHIN_LAYERS)
        )
        for row in differences_at_once(
            worth, outcome.scores, outcome.values_N, outcome.layers_N, pooling=pooling
        )
    ]


def _difference_sentences(differences: Sequence[Mapping[str, Any]], pooling: str) -> list[str]:
    """Return of every outcome which scores are surely better than the output score at ranking
    features, and which can't be told from it.
    """
    sentences = []
    for outcome in dict.fromkeys(row["outcome"] for row in differences):
        key = ("rank correlation", outcome, pooling)
        rows = [
            row for row in differences if (row["measure"], row["outcome"], row["pooling"]) == key
        ]
        if not rows:
            continue
        surely = [row for row in rows if row["p"] <= LEVEL]
        better = [
            f"{row['score']} by {interval_of(row, 'difference', '.2g')}"
            for row in surely
            if row["difference"] > 0
        ]
        same = [row["score"] for row in rows if row["p"] > LEVEL]
        sentences.append(
            f"Rank correlation with {outcome}, {pooling}, beside that of {REFERENCE} ({len(rows)} "
            f"others compared at once): surely better: {', '.join(better) or 'none'}; not told "
            f"from it: {', '.join(same) or 'none'}; surely worse: {len(surely) - len(better)}."
        )
    return sentences


def _correlation_sentences(
    correlations: Sequence[Mapping[str, Any]], poolings: Sequence[str]
) -> list[str]:
    """Return of every outcome the scores that surely go with it; of success pooled others tell."""
    sentences = []
    outcomes = dict.fromkeys(row["outcome"] for row in correlations)
    for outcome, pooling in itertools.product(outcomes, poolings):
        if (outcome, pooling) == ("success", POOLED):
            continue
        rows = [
            row for row in correlations if (row["outcome"], row["pooling"]) == (outcome, pooling)
        ]
        surely = [row for row in rows if row["p"] <= LEVEL]
        surely = sorted(surely, key=lambda row: -abs(row["spearman"]))
        numbers = ", ".join(
            f"{row['score']} {interval_of(row, 'spearman', '.3g')}" for row in surely
        )
        sentences.append(
            f"Rank correlation with {outcome}, {pooling}, {len(rows)} scores compared at once: "
            + (f"{numbers}." if numbers else "none of them surely goes with it.")
        )
    return sentences


def _combined_sentences(rows: Sequence[Combined], poolings: Sequence[str]) -> list[str]:
    """Return whether two scores together select better than the best one."""
    sentences = []
    for row in rows:
        if row.pooling not in poolings:
            continue
        less = row.pair_less_single
        verdict = "can't be told from it"
        if less.low is not None and less.high is not None and not less.low <= 0 <= less.high:
            verdict = "is surely better" if less.low > 0 else "is surely worse"
        sentences.append(
            f"Two scores together, chosen and counted on different features ({row.pooling}, "
            f"{row.share:.0%} kept): the best pair, {row.pair}, has "
            f"{with_interval(*row.pair_payoff)} times the success of as many at random, "
            f"the best score, {row.single}, {with_interval(*row.single_payoff)}; the pair "
            f"{verdict} (difference {with_interval(*less)})."
        )
    return sentences


def _combined_table(rows: Sequence[Combined]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                **{name: getattr(row, name) for name in Combined._fields[:5]},
                **{
                    column: value
                    for name in Combined._fields[5:]
                    for column, value in interval_columns(name, getattr(row, name)).items()
                },
            }
            for row in rows
        ]
    )


def _guides(criteria: Sequence[Criterion], better: Container[str]) -> list[dict[str, Any]]:
    """Return rows of the table; `better` are the scores that surely select better than at random,
    and each claim of a correlation counts the others (`sure`).
    """
    correlated = sure([criterion.p for criterion in criteria])
    rows = []
    for criterion, is_correlated in zip(criteria, correlated, strict=True):
        row = {"score": criterion.score, "features": criterion.scored}
        row |= {
            "surely_better": criterion.score in better,
            "surely_correlated": is_correlated,
        }
        row |= interval_columns("spearman", criterion.spearman)
        for share, at_share in zip(SHARES, criterion.highest, strict=True):
            row |= interval_columns(f"success_{share:g}", at_share.success if at_share else None)
        last = criterion.highest[COMPARED]
        row |= interval_columns("over_random", last.over_random if last else None)
        within = last.over_unfiltered_within_layers if last else None
        row |= interval_columns("over_unfiltered_within_layers", within)
        rows.append(row)
    return rows


def _pair(score: str, other_score: str, values: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Return two scores over the features that have both; None if one of them is constant there,
    or these are too few.
    """
    from scipy.stats import kendalltau

    both = ~(np.isnan(values[score]) | np.isnan(values[other_score]))
    a_N, b_N = values[score][both], values[other_score][both]
    correlation = spearman(a_N, b_N, RESAMPLES, np.random.default_rng(0))
    if correlation is None:
        return None
    size = max(1, min(TOP, len(a_N) // 4))
    shared = np.minimum(top_weights(a_N, size), top_weights(b_N, size)).sum()
    tau: Any = kendalltau(a_N, b_N)
    return {
        "score": score,
        "other_score": other_score,
        "features": len(a_N),
        **interval_columns("spearman", correlation),
        "kendall": float(tau.statistic),
        "top": size,
        "top_shared": float(shared / size),
        "top_shared_by_chance": size / len(a_N),
    }


def _guide_sentences(
    criteria: Sequence[Criterion], guides: pd.DataFrame, success: str
) -> list[str]:
    """Return what is surely a guide to success; of too few features only how many it takes."""
    if guides.empty:
        return ["Nothing was steered, so no score can be judged as a guide."]
    share, scored = f"{SHARES[COMPARED]:.0%}", int(guides["features"].to_numpy().max())
    selected = next(
        (criterion.highest[COMPARED] for criterion in criteria if criterion.highest[COMPARED]), None
    )
    if scored < FEWEST:
        n = f"{scored} feature{'s' * (scored != 1)} with a best factor"
        return [f"{n} can't say which score guides to success: it takes at least {FEWEST}."]
    if selected is None or selected.selected < FEWEST:
        few = selected.selected if selected else 0
        sentences = [f"{share} of the features, {few}, are too few to compare selections by."]
    else:
        sentences = _selecting(guides, share, success)
    rises = guides.loc[guides["surely_correlated"] & (guides["spearman"] > 0), "score"]
    falls = guides.loc[guides["surely_correlated"] & (guides["spearman"] < 0), "score"]
    parts = [
        f"{verb} with {', '.join(names)}"
        for verb, names in (("rises", rises), ("falls", falls))
        if len(names)
    ]
    if not parts:
        return [*sentences, "Success surely rises or falls with none of the scores."]
    return [*sentences, f"Success surely {' and '.join(parts)}."]


def _selecting(guides: pd.DataFrame, share: str, success: str) -> list[str]:
    better = guides.loc[guides["surely_better"]]
    if better.empty:
        return [
            f"Selecting {share} of the features by none of the scores is surely better than "
            "at random."
        ]
    best = better.iloc[0]
    return [
        f"Surely more than at random gives selecting by {', '.join(better['score'])}.",
        f"Of these {best['score']} has most: {share} of the features by it have mean {success} "
        f"{interval_of(best, GUIDE, '.3g')}, {interval_of(best, 'over_random', '.3g')} times as "
        "many at random.",
    ]


def _agreement_sentences(agreement: pd.DataFrame) -> list[str]:
    """Return which scores agree most with the output score, and which least."""
    if agreement.empty:
        return [
            f"No two scores differ on {FEWEST} features or more, so nothing is said of whether "
            "they agree."
        ]
    parts = []
    name = "output_score"
    rows = agreement.loc[(agreement["score"] == name) | (agreement["other_score"] == name)]
    for row in rows.sort_values("spearman", ascending=False).to_dict("records"):
        other_score = row["other_score"] if row["score"] == name else row["score"]
        parts.append(
            f"{other_score} {row['spearman']:.2f} (Kendall {row['kendall']:.2f}; "
            f"{row['top_shared']:.0%} of the first {row['top']}, "
            f"{row['top_shared_by_chance']:.0%} by chance)"
        )
    if len(parts) > 2 * TOLD:
        parts = [*parts[:TOLD], "...", *parts[-TOLD:]]
    return [f"Rank correlation with {name}: {'; '.join(parts)}."] if parts else []


def _figures(
    tables: RunTables,
    at_share: Sequence[EqualShare],
    agreement: pd.DataFrame,
    scores: Sequence[str],
    success: str,
) -> dict[str, Callable[[], Figure]]:
    from steerlens.report.figures import criteria as drawn
    from steerlens.report.figures.output_score import subtitle

    figures: dict[str, Callable[[], Figure]] = {}
    rows = [row for row in at_share if (row.counted, row.share) == (AS_SUCH, SHARES[COMPARED])]
    if any(row.p is not None for row in rows):
        counted = subtitle(features_alone(tables.steering).dropna(subset=["best_factor"]))
        figures["criteria_payoff"] = partial(drawn.payoffs, rows, counted, success)
    if len(agreement):
        figures["criteria_agreement"] = partial(drawn.agreement, agreement, scores)
    return figures
