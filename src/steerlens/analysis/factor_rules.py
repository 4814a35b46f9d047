"""Rules that choose the steering factor, compared on the same texts without making any further.

A rule chooses on some prompts, and counts on others: success, and what it cost. Where no factor may
be chosen a feature counts as unsteered, so that a rule can't look good by leaving out the hard
ones.

Dimension letters: F features, K factors, P prompts, N limits, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from steerlens.analysis.equal_share import counts_within
from steerlens.analysis.factors import merits
from steerlens.analysis.resampling import FEWEST, Estimate, estimate
from steerlens.analysis.text_grid import (
    PromptMeans,
    TextGrid,
    chosen_factors,
    halves_of_prompts,
    nan_mean,
)

if TYPE_CHECKING:
    from steerlens.config.schema import ChoiceConfig

LIMIT_OF_RULE = {
    "paper": ("success_cap", "success"),
    "perplexity_ratio": ("perplexity_ratio", "perplexity_ratio"),
    "kl": ("kl_budget", "kl"),
    "dose": ("dose_budget", "relative_dose"),
}
"""The setting of `choice` that says how far a rule goes, and the mean that it limits."""

SAME_FACTOR = "the same factor"
"""No rule: all features are steered with the same factor."""

DAMAGES = {"kl": (0.25, 0.5, 1.0, 2.0), "perplexity_ratio": (1.25, 1.5, 2.0, 3.0)}
"""What steering costs, and the levels at which success is compared: the mean KL over features in
nats a token, and the geometric mean of perplexity over the unsteered one."""

N_LIMITS = 15
RESAMPLES = 200
SIZES = (5, 10, 20)
"""Prompts to choose on."""
DRAWS = 10
FEWEST_OTHERS = 5
"""Prompts that a factor is tried on, beside those that chose it."""


class AtDamage(NamedTuple):
    """Success of the features steered by a rule, at one level of damage."""

    rule: str
    damage: str
    level: float
    features: int
    success: Estimate | None
    """None where no limit of the rule does so much, or so little."""
    over_same_factor: Estimate | None
    """Less that with the same factor for all, drawn together."""
    degeneracy: float | None
    """Mean degeneracy of the same texts: repeated tokens are cheap for a model, so that success at
    little damage may be one token again and again. None where it wasn't measured."""


class OnPrompts(NamedTuple):
    """How well factors chosen on some prompts hold on others."""

    rule: str
    prompts: int
    prompts_counted: int
    features: int
    with_factor: float
    """Share of the features that have a factor, mean over draws."""
    success: Estimate | None
    """Success on the other prompts, as a share of the most that the rule allows there: the mean and
    the range of draws."""
    still_allowed: Estimate | None
    """Share of the factors that the rule allows on the other prompts, too."""


class Common(NamedTuple):
    """One factor, dose or KL for all features of a layer, in the place of a search for each."""

    layer: int
    common: str
    value: float
    """The middle one of those that the other features of the layer chose."""
    features: int
    merit: Estimate | None
    """Of the rule, as a share of what a factor of each feature's own brings on the same prompts."""
    success: float
    success_of_each: float


def success_at_equal_damage(grid: TextGrid, choice: ChoiceConfig) -> Iterator[AtDamage]:
    """Yield the success of every rule where its limit is such that it does as much damage as the
    others: factors are chosen on one half of the prompts, success and damage counted on the other.

    Between two limits both are interpolated. Features are resampled within layers, all rules with
    the same ones.
    """
    on_choosing, on_counting = map(grid.on, halves_of_prompts(grid.n_prompts))
    counts_RF = counts_within(grid.groups_F, RESAMPLES, np.random.default_rng(0))
    counts_RF = np.concatenate([np.ones((1, len(grid.layers_F))), counts_RF])
    indices = np.flatnonzero(grid.factors_K >= 0)
    chosen = {SAME_FACTOR: np.repeat(indices[:, None], len(grid.layers_F), axis=1)}
    for rule, (setting, cost) in LIMIT_OF_RULE.items():
        limits = _limits(getattr(on_choosing, f"{cost}_FK"), on_choosing.factors_K)
        chosen[rule] = np.array(
            [
                chosen_factors(on_choosing, replace(choice, rule=rule, **{setting: limit}))
                for limit in limits
            ]
        )
    for damage, levels in DAMAGES.items():
        success_of = {
            rule: _interpolated(on_counting, "success", chosen_NF, damage, levels, counts_RF)
            for rule, chosen_NF in chosen.items()
            if len(chosen_NF)
        }
        for rule, success_RL in success_of.items():
            over_RL = success_RL - success_of[SAME_FACTOR]
            (degeneracy_L,) = _interpolated(
                on_counting, "degeneracy", chosen[rule], damage, levels, counts_RF[:1]
            )
            for at, level in enumerate(levels):
                yield AtDamage(
                    rule,
                    damage,
                    level,
                    len(grid.layers_F),
                    _with_interval(success_RL[:, at], len(grid.layers_F)),
                    None
                    if rule == SAME_FACTOR
                    else _with_interval(over_RL[:, at], len(grid.layers_F)),
                    None if np.isnan(degeneracy_L[at]) else float(degeneracy_L[at]),
                )


def _limits(cost_FK: np.ndarray, factors_K: np.ndarray) -> list[float]:
    """Return limits from what allows hardly any steered text to what allows all."""
    costs = cost_FK[:, factors_K != 0]
    costs = costs[np.isfinite(costs) & (costs > 0)]
    return sorted({*np.quantile(costs, np.linspace(0, 1, N_LIMITS)).tolist()}) if len(costs) else []


def _interpolated(
    means: PromptMeans,
    name: str,
    chosen_NF: np.ndarray,
    damage: str,
    levels: Sequence[float],
    counts_RF: np.ndarray,
) -> np.ndarray:
    """Return the mean over features of `name` (success, say) where the mean damage is at each
    level, in each sample: (R, L).
    """
    values_NF = np.array([means.at(chosen_F, name) for chosen_F in chosen_NF])
    damage_NF = np.array([means.at(chosen_F, damage) for chosen_F in chosen_NF])
    is_ratio = damage == "perplexity_ratio"
    if is_ratio:
        damage_NF = np.log(damage_NF)
    values_RN, damage_RN = (_weighted(values, counts_RF) for values in (values_NF, damage_NF))
    goals = np.log(levels) if is_ratio else np.array(levels)
    rows = []
    for values_N, damage_N in zip(values_RN, damage_RN, strict=True):
        order = np.argsort(damage_N, kind="stable")
        order = order[np.isfinite(damage_N[order]) & np.isfinite(values_N[order])]
        if not len(order):
            rows.append(np.full(len(goals), np.nan))
            continue
        rows.append(np.interp(goals, damage_N[order], values_N[order], left=np.nan, right=np.nan))
    return np.array(rows)


def _weighted(values_NF: np.ndarray, counts_RF: np.ndarray) -> np.ndarray:
    """Return means over features that are there `counts_RF` times; NaN values are left out."""
    has_NF = np.isfinite(values_NF)
    sums_RN = counts_RF @ np.where(has_NF, values_NF, 0).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums_RN / (counts_RF @ has_NF.T)


def _with_interval(values_R: np.ndarray, n: int) -> Estimate | None:
    """Return the first as the value and the others as its bootstrap samples."""
    if np.isnan(values_R[0]):
        return None
    finite = values_R[1:][np.isfinite(values_R[1:])]
    return (
        estimate(float(values_R[0]), finite, n)
        if len(finite)
        else Estimate(float(values_R[0]), None, None)
    )


def held_out(grid: TextGrid, choice: ChoiceConfig, rules: Sequence[str]) -> Iterator[OnPrompts]:
    """Yield how well the factors that each rule chooses on 5, 10 and 20 prompts hold on all others,
    over random draws of the prompts.
    """
    n = grid.n_prompts
    n_features = len(grid.layers_F)
    for rule in rules:
        of_rule = replace(choice, rule=rule)
        for size in SIZES:
            if size + FEWEST_OTHERS > n:
                continue
            with_factor, shares, allowed = [], [], []
            for draw in range(DRAWS):
                order = np.random.default_rng([draw, size]).permutation(n)
                on_choosing, on_counting = grid.on(order[:size]), grid.on(order[size:])
                chosen_F = chosen_factors(on_choosing, of_rule)
                best_F = chosen_factors(on_counting, of_rule)
                has_F = grid.factors_K[chosen_F] != 0
                with_factor.append(float(has_F.mean()))
                most = np.nansum(on_counting.at(best_F, "success"))
                reached = np.nansum(on_counting.at(chosen_F, "success"))
                shares.append(float(reached / most) if most else np.nan)
                measured = on_counting.measured()
                still = [
                    float(grid.factors_K[chosen]) in merits(measured[feature], of_rule)
                    for feature, chosen in enumerate(chosen_F)
                    if has_F[feature]
                ]
                allowed.append(float(np.mean(still)) if still else np.nan)
            yield OnPrompts(
                rule,
                size,
                n - size,
                n_features,
                float(np.mean(with_factor)),
                _range(shares, n_features),
                _range(allowed, n_features),
            )


def _range(values: Sequence[float], n_features: int) -> Estimate | None:
    """Return the mean and the middle nine tenths of draws; of few features the mean alone."""
    finite = np.array(values)[np.isfinite(values)]
    if not len(finite):
        return None
    if n_features < FEWEST:
        return Estimate(float(finite.mean()), None, None)
    low, high = np.quantile(finite, [0.05, 0.95]).tolist()
    return Estimate(float(finite.mean()), low, high)


def common_to_layers(grid: TextGrid, choice: ChoiceConfig) -> Iterator[Common]:
    """Yield how far one factor, one dose or one KL fits all features of each layer.

    For each feature the other features of its layer choose the value on one half of the prompts:
    the one with most merit at the tried factor whose mean is nearest to it. Its merit is counted on
    the other half, as that of the factor which the feature's own texts of the first half choose.
    Layers with one feature are left out.
    """
    on_choosing, on_counting = map(grid.on, halves_of_prompts(grid.n_prompts))
    own_F = chosen_factors(on_choosing, choice)
    merit_FK, merit_counting_FK = (_merits(means, choice) for means in (on_choosing, on_counting))
    steered_K = np.flatnonzero(grid.factors_K > 0)
    for group in np.unique(grid.groups_F):
        (members,) = np.nonzero(grid.groups_F == group)
        if len(members) < 2 or not len(steered_K):
            continue
        each_F = merit_counting_FK[members, own_F[members]]
        for common, cost_FK in (
            ("factor", np.broadcast_to(grid.factors_K, grid.success_FKP.shape[:2])),
            ("relative_dose", on_choosing.relative_dose_FK),
            ("kl", on_choosing.kl_FK),
        ):
            cost_MK = cost_FK[np.ix_(members, steered_K)]
            values = np.unique(cost_MK[np.isfinite(cost_MK) & (cost_MK > 0)])
            if not len(values):
                continue
            goals = np.unique(
                np.quantile(values, np.linspace(0, 1, 4 * N_LIMITS), method="nearest")
            )
            nearest_MG = _nearest(cost_MK, goals)
            factor_MG = steered_K[nearest_MG]
            merit_MG = merit_FK[members[:, None], factor_MG]
            # What the others choose, each in turn left out.
            goal_M = (merit_MG.sum(axis=0) - merit_MG).argmax(axis=1)
            chosen_M = factor_MG[np.arange(len(members)), goal_M]
            common_M = merit_counting_FK[members, chosen_M]
            yield Common(
                int(grid.layers_F[members[0]]),
                common,
                float(np.median(goals[goal_M])),
                len(members),
                _ratio(common_M, each_F),
                float(nan_mean(on_counting.success_FK[members, chosen_M], axis=0)),
                float(nan_mean(on_counting.success_FK[members, own_F[members]], axis=0)),
            )


def _nearest(cost_MK: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Return the index of the factor whose cost is nearest to each goal, as a ratio: (M, G)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(np.log(cost_MK)[:, :, None] - np.log(goals))
    return np.where(np.isfinite(apart), apart, np.inf).argmin(axis=1)


def _merits(means: PromptMeans, choice: ChoiceConfig) -> np.ndarray:
    """Return the merit of each feature's factors by the rule, 0 where it may not be chosen."""
    merit_FK = np.zeros(means.success_FK.shape)
    for feature, measured in enumerate(means.measured()):
        merit_of: Mapping[float, float] = merits(measured, choice)
        for factor, merit in merit_of.items():
            merit_FK[feature, np.searchsorted(means.factors_K, factor)] = merit
    return merit_FK


def _ratio(common_M: np.ndarray, each_M: np.ndarray) -> Estimate | None:
    """Return the sum of the first over that of the second, features resampled together."""
    if not each_M.sum():
        return None
    n = len(common_M)
    counts_RM = counts_within(np.zeros(n, dtype=int), RESAMPLES, np.random.default_rng(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_R = (counts_RM @ common_M) / (counts_RM @ each_M)
    value = float(common_M.sum() / each_M.sum())
    return estimate(value, ratio_R[np.isfinite(ratio_R)], n)
