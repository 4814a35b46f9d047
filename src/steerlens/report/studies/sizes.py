"""How much data does each answer need: sentences for S_in, prompts for S_out, texts for the best
factor and for what filtering pays?

Every answer from less data is held against the answer from all of it, and the size from which on
it agrees to within 5 % is told. Less data is part of all the data, so the agreement flatters: near
the full size it must be 1.

- S_in: results of a sweep over `corpus.n_tokens` and `score.input.max_examples`; agreement is
  Spearman's correlation over the features that both have scored.
- S_out: means over some of the prompts of score=prompt_robustness; Spearman's correlation.
- best factor: chosen from the texts of some of the prompts; its merit over all prompts (success per
  perplexity, or success within the budget) as a share of that of the best factor.
- payoff: success of the features with S_out >= 0.1 over that of all, from the texts of some of the
  prompts; 1 less its relative distance from the payoff of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steerlens.analysis.factors import by_factor, choose_factors, measured_by_factor, merits
from steerlens.analysis.resampling import FEWEST, Estimate, spearman
from steerlens.analysis.series import Series
from steerlens.analysis.summary import THRESHOLDS
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies import Answer, interval_columns
from steerlens.results import FEATURES, features_alone
from steerlens.results.folder import RunTables
from steerlens.results.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITHIN = 0.95
"""Agreement within 5 %."""

APART = 1.5
"""By this factor sizes differ that have room for their labels beside each other."""

KEYS = list(FEATURES.keys)

DRAWS = 10
"""Random sets of prompts of each size; their range is what low and high say."""

TOKENS, EXAMPLES = "corpus.n_tokens", "score.input.max_examples"
"""Settings in which results may differ."""


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """Return the agreement with the answer from all data against size, for every answer that there
    is.

    Raises:
        SteerlensError: there is nothing that could be made smaller.
    """
    rows = [*_input_scores(series)]
    tables = series[-1].tables
    rows += [*_output_scores(tables.features), *_texts(tables)]
    if not rows:
        raise SteerlensError(
            "it takes a sweep over corpus.n_tokens, the score prompt_robustness, or steered texts."
        )
    table = pd.DataFrame(rows)
    return Answer(
        sentences=[
            _sentence(str(name), part) for name, part in table.groupby("answer", sort=False)
        ],
        tables={"sizes": table},
        figures={"sizes": partial(_draw, table)}
        if any(table["agreement"].notna().tolist())
        else {},
    )


def _input_scores(series: Sequence[Series]) -> Iterator[dict[str, Any]]:
    """Yield S_in of every result beside that of the most text; first by tokens, then by
    sentences.
    """
    scored = [
        member for member in series if any(member.tables.features["input_score"].notna().tolist())
    ]
    for key, other_setting, unit in ((TOKENS, EXAMPLES, "tokens"), (EXAMPLES, TOKENS, "sentences")):
        having = [member for member in scored if key in member.settings]
        largest = max((_number(member, other_setting) for member in having), default=0)
        same = sorted(
            (member for member in having if _number(member, other_setting) == largest),
            key=lambda member: _number(member, key),
        )
        for member in same if len(same) > 1 else []:
            agreement, n = _agree(member.tables.features, same[-1].tables.features)
            yield _row(f"S_in by {unit}", unit, int(_number(member, key)), n, agreement)


def _number(member: Series, key: str) -> float:
    return float(member.settings.get(key, 0))


def _agree(part: pd.DataFrame, full: pd.DataFrame) -> tuple[Estimate | None, int]:
    """Return the correlation, and over how many features: from little text few have a score."""
    columns = [*KEYS, "input_score"]
    both = part[columns].merge(full[columns], on=KEYS, suffixes=("", "_full")).dropna()
    some_N, full_N = (both[name].to_numpy(float) for name in ("input_score", "input_score_full"))
    return spearman(some_N, full_N, 200, np.random.default_rng(0)), len(both)


def _output_scores(features: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield S_out as the mean over some prompts beside the mean over all."""
    by_prompt = features["output_score_by_prompt"].dropna()
    if by_prompt.empty:
        return
    scores_FP = np.array(by_prompt.tolist(), dtype=float)
    full_F = pd.Series(scores_FP.mean(axis=1)).rank()
    for size, draws in _subsets(scores_FP.shape[1]):
        correlations = [
            float(np.corrcoef(pd.Series(scores_FP[:, indices].mean(axis=1)).rank(), full_F)[0, 1])
            for indices in (draws if len(full_F) >= FEWEST else [])
        ]
        yield _row("S_out", "prompts", size, len(full_F), _range(correlations))


def _texts(tables: RunTables) -> Iterator[dict[str, Any]]:
    """Yield the best factor and the payoff from the texts of some prompts beside those of all."""
    texts = features_alone(tables.generations)
    prompts = sorted(texts["prompt"].unique())
    if len(prompts) < 2 or tables.choice is None:
        return
    # Features come in the same order from every set of prompts.
    merit_of = [
        merits(by_factor_of_feature, tables.choice)
        for by_factor_of_feature in measured_by_factor(by_factor(texts), tables.choice)
    ]
    goal = sum(max(merit_of_feature.values(), default=0.0) for merit_of_feature in merit_of)
    high = tables.features.loc[tables.features["output_score"] >= THRESHOLDS[1], KEYS]
    payoff = _payoff(choose_factors(texts, tables.choice), high)
    rows: dict[str, list[dict[str, Any]]] = {}
    for size, draws in _subsets(len(prompts)):
        reached, payoffs = [], []
        for indices in draws:
            part = texts.loc[texts["prompt"].isin([prompts[at] for at in indices])]
            chosen = choose_factors(part, tables.choice)
            best = chosen["best_factor"].tolist()
            gained = sum(
                merit_of_feature.get(factor, 0.0)
                for merit_of_feature, factor in zip(merit_of, best, strict=True)
            )
            reached.append(gained / goal if goal else np.nan)
            payoffs.append(1 - abs(_payoff(chosen, high) / payoff - 1) if payoff else np.nan)
        for name, values in (("best factor", reached), ("payoff", payoffs)):
            agreement = _range(values) if len(merit_of) >= FEWEST else None
            rows.setdefault(name, []).append(_row(name, "prompts", size, len(merit_of), agreement))
    for part in rows.values():
        yield from part


def _payoff(chosen: Any, high: pd.DataFrame) -> float:
    decided = chosen.dropna(subset=["best_factor"])
    filtered = decided.merge(high, on=KEYS)["success_20"].astype(float).mean()
    every = decided["success_20"].astype(float).mean()
    return float(filtered / every) if every else np.nan


def _subsets(n: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield sizes up to `n`, each with random sets of so many of `n` prompts; all of them once."""
    sizes = [size for size in (1, 2, 3, 5, 10, 15, 20, 30, 40) if size < n]
    for size in sizes:
        rngs = (np.random.default_rng([draw, size]) for draw in range(DRAWS))
        yield size, [rng.choice(n, size, replace=False) for rng in rngs]
    yield n, [np.arange(n)]


def _range(values: Sequence[float]) -> Estimate | None:
    """Return the mean and the middle nine tenths of some draws."""
    finite = np.array(values)[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [0.05, 0.95]).tolist()
    return Estimate(float(finite.mean()), low, high)


def _row(
    name: str, unit: str, size: int, features: int, estimate: Estimate | None
) -> dict[str, Any]:
    about = {"answer": name, "unit": unit, "size": size, "features": features}
    return about | interval_columns("agreement", estimate)


def _sentence(name: str, part: pd.DataFrame) -> str:
    """Return from which size on the answer stays within 5 % of that from all data."""
    unit, full = part["unit"].iloc[0], int(part["size"].iloc[-1])
    if all(part["agreement"].isna().tolist()):
        features = max(part["features"].tolist())
        why = "the answer from all data is constant, or 0, so nothing can agree with it"
        if features < FEWEST:
            why = (
                f"{counted(features, 'feature')} can't say how much data it takes; at least "
                f"{FEWEST} can"
            )
        return f"{name}: {why}."
    close = (part["agreement"].astype(float) >= WITHIN).tolist()
    first = next(at for at in range(len(close)) if all(close[at:])) if close[-1] else len(close)
    if first >= len(close) - 1:
        return f"{name}: not within 5 % of the answer from {full:,} {unit} with fewer than these."
    size, value = int(part["size"].iloc[first]), float(part["agreement"].iloc[first])
    n, most = int(part["features"].iloc[first]), int(part["features"].iloc[-1])
    over = f" over {n:,} features, of {most:,} with a score" if n < most else f", {n:,} features"
    return (
        f"{name}: within 5 % of the answer from {full:,} {unit} from {size:,} on (agreement "
        f"{value:.3f}{over})."
    )


def _draw(table: pd.DataFrame) -> Figure:
    """Return the agreement against size, a panel for each answer."""
    from steerlens.report.figures import style

    parts = list(table.dropna(subset=["agreement"]).groupby("answer", sort=False))
    figure = style.new_figure(1 + 3 * len(parts), 3.6)
    row = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, (name, part) in zip(row, parts, strict=True):
        size = part["size"].to_numpy(dtype=float)
        value, low, high = (
            part[key].to_numpy(dtype=float)
            for key in ("agreement", "agreement_low", "agreement_high")
        )
        axes.fill_between(size, low, high, color=style.BLUE, alpha=0.2, lw=0)
        axes.plot(size, value, "o-", color=style.BLUE)
        axes.axhline(WITHIN, color=style.MUTED, ls=":", lw=1)
        axes.set_xscale("log")
        ticks = _ticks(part["size"].tolist())
        axes.set_xticks(ticks, [f"{at / 1000:g}k" if at >= 1000 else f"{at:g}" for at in ticks])
        axes.minorticks_off()
        axes.set(title=str(name), xlabel=part["unit"].iloc[0])
    row[0].set_ylabel("agreement with all data")
    n = style.n_of((part["features"].iloc[-1] for _, part in parts), "feature")
    how = "agreement with the answer from all data, band: 95 % interval; dotted: within 5 %"
    style.headline(figure, "How much data it takes", n, how)
    return figure


def _ticks(sizes: Sequence[int]) -> list[int]:
    """Return of rising sizes the last and, back from it, those that stand apart on a logarithmic
    axis.
    """
    chosen_sizes: list[int] = []
    for size in reversed(sizes):
        if not chosen_sizes or chosen_sizes[0] / size >= APART:
            chosen_sizes.insert(0, size)
    return chosen_sizes
