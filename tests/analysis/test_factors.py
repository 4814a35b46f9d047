"""The right factor of every feature: by the paper's rule, by a budget, and found with few texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.factors import (
    FEATURE,
    FactorMeans,
    Measured,
    best_factors,
    by_factor,
    choice_counts,
    choose_factors,
    next_factors,
    no_factor,
    safe_range,
)
from steerlens.config.registry import parts_of
from steerlens.config.schema import ChoiceConfig
from steerlens.errors import SteerlensError
from steerlens.results import GENERATIONS, STEERING
from tests.support.frames import generations

PAPER = ChoiceConfig()
BUDGET = ChoiceConfig(rule="budget")
NAN = float("nan")
GRID = (0.2, 0.4, 0.8, 1.2, 1.6, 2, 3, 4, 6, 8, 10, 20)


def texts(measured: Mapping[float, Any], feature: int = 0) -> pd.DataFrame:
    """Texts of one feature: one at every factor with these numbers."""
    rows = [
        {"factor": factor, "success_20": success, "perplexity": perplexity}
        for factor, (success, perplexity, *_) in measured.items()
    ]
    place = {"model": "toy", "sae": "toy-sae", "hook_name": "hook", "layer": 0, "feature": feature}
    rows = [{**place, "prompt": "Note that", "sample": 0, **row} for row in rows]
    success = [row.pop("success_20") for row in rows]
    return GENERATIONS.frame(rows).assign(success_20=success)


def both_arms() -> pd.DataFrame:
    table = generations(8, (0.0, 0.5, 2.0, 8.0, 20.0))
    control = generations(8, (0.0, 0.5, 2.0, 8.0, 20.0), control="random_direction")
    return pd.concat([table, control.assign(success_20=1)], ignore_index=True)


def test_means_are_those_of_the_texts() -> None:
    table = both_arms()
    means = by_factor(table)
    assert len(means) == 2 * 2 * 8 * 5
    assert set(means["texts"]) == {4}
    for row in means.to_dict("records"):
        own = table["control"].isna() if pd.isna(row["control"]) else table["control"].notna()
        same = table.loc[own & (table["layer"] == row["layer"])]
        same = same.loc[(same["feature"] == row["feature"]) & (same["factor"] == row["factor"])]
        for name in ("success_1", "success_5", "success_20", "perplexity", "degeneracy"):
            assert row[name] == pytest.approx(np.mean([float(x) for x in same[name]]))


def naive_paper(table: pd.DataFrame) -> dict[tuple, float | None]:
    """The rule as the paper tells it, maxima and all, one text after the other."""
    groups: dict[tuple, dict[float, list[tuple[int, float]]]] = {}
    for row in table.to_dict("records"):
        key = (row["layer"], row["feature"], None if pd.isna(row["control"]) else row["control"])
        at = groups.setdefault(key, {}).setdefault(row["factor"], [])
        at.append((row["success_20"], row["perplexity"]))
    means = {
        (key, factor): tuple(np.mean(numbers, axis=0))
        for key, factors in groups.items()
        for factor, numbers in factors.items()
    }
    max_success = max(success for success, _ in means.values())
    max_perplexity = max(perplexity for _, perplexity in means.values())
    chosen: dict[tuple, float | None] = {}
    for key, factors in groups.items():
        best, best_merit = None, -1.0
        for factor in sorted(factors):
            success, perplexity = means[key, factor]
            if factor == 0 or success > 3:
                continue
            merit = (success / max_success) / (perplexity / max_perplexity)
            if merit > best_merit:
                best, best_merit = factor, merit
        chosen[key] = best
    return chosen


def chosen(table: pd.DataFrame) -> dict[tuple, float | None]:
    return {
        (row["layer"], row["feature"], None if pd.isna(row["control"]) else row["control"]): (
            None if pd.isna(row["best_factor"]) else row["best_factor"]
        )
        for row in table.to_dict("records")
    }


def test_the_papers_rule_is_the_naive_one() -> None:
    table = both_arms()
    found = choose_factors(table, PAPER)
    assert chosen(found) == naive_paper(table)
    assert len({*chosen(found).values()}) > 2


def test_the_row_of_a_feature_has_its_means_at_the_best_factor_and_without_steering() -> None:
    table = both_arms()
    found = choose_factors(table, PAPER)
    assert list(found.columns) == list(STEERING.columns)
    means = by_factor(table).set_index([*FEATURE, "factor"])
    for row in found.to_dict("records"):
        control = np.nan if pd.isna(row["control"]) else row["control"]
        key = (*(row[name] for name in FEATURE[:5]), control, np.nan, np.nan)
        for name in ("success_1", "success_5", "success_20", "perplexity", "degeneracy", "texts"):
            assert row[name] == means.loc[(*key, row["best_factor"]), name]
        for name in ("success_20", "perplexity"):
            assert row[f"{name}_unsteered"] == means.loc[(*key, 0.0), name]


def test_the_order_of_the_rows_changes_nothing() -> None:
    table = both_arms()
    shuffled = table.sample(frac=1, random_state=3)
    for choice in (PAPER, BUDGET, ChoiceConfig(split=True)):
        expected = choose_factors(table, choice)
        pd.testing.assert_frame_equal(choose_factors(shuffled, choice), expected)
        again = choose_factors(shuffled.reset_index(drop=True), choice)
        pd.testing.assert_frame_equal(again, expected)


def test_other_features_and_the_scale_of_perplexity_change_no_choice() -> None:
    table = both_arms()
    expected = chosen(choose_factors(table, PAPER))
    scaled = table.assign(perplexity=table["perplexity"] * 1024)
    assert chosen(choose_factors(scaled, PAPER)) == expected
    alone = choose_factors(table.loc[table["feature"] == 4], PAPER)
    assert chosen(alone) == {key: best for key, best in expected.items() if key[1] == 4}


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ({0.0: (9, 1), 1.0: (1, 10), 2.0: (2, 10), 3.0: (3, 10)}, [3.0]),
        ({1.0: (1, 10), 2.0: (3.01, 10)}, [1.0]),
        ({1.0: (1, 10), 2.0: (2, 20)}, [1.0, 2.0]),
        ({2.0: (0, 20), 1.0: (0, 10)}, [1.0, 2.0]),
        ({2.0: (0, 20), -1.0: (0, 10), 1.0: (0, 10)}, [1.0, -1.0, 2.0]),
        ({0.0: (1, 10), 1.0: (4, 10), 2.0: (5, 10)}, []),
        ({1.0: (1, NAN), 2.0: (2, NAN)}, [2.0]),
        ({1.0: (1, 10), 2.0: (2, NAN)}, [1.0]),
        ({1.0: (0, 10), 2.0: (0, NAN)}, [1.0, 2.0]),
        ({1.0: (1, 10), 2.0: (2, float("inf"))}, [1.0]),
        ({1.0: (NAN, 10), 2.0: (1, 20)}, [2.0]),
        ({0.0: (1, 10)}, []),
    ],
)
def test_the_papers_rule_at_its_edges(measured: Measured, best: list[float]) -> None:
    assert best_factors(measured, PAPER) == best
    found = choose_factors(texts(measured), PAPER).iloc[0]
    assert [found["best_factor"]] == best[:1] if best else found["best_factor"] is pd.NA


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ({0.0: (0, 10), 1.0: (1, 12), 2.0: (5, 20), 3.0: (9, 21)}, [2.0]),
        ({0.0: (0, 10), 1.0: (2, 12), 2.0: (2, 11)}, [1.0, 2.0]),
        ({0.0: (0, 10), 1.0: (2, 22)}, []),
        ({0.0: (0, 10), 1.0: (1, 12), 2.0: (2, NAN)}, [1.0]),
        ({0.0: (0, NAN), 1.0: (1, NAN), 2.0: (2, NAN)}, [2.0]),
    ],
)
def test_the_budget_takes_the_most_success_within_it(measured: Measured, best: list[float]) -> None:
    assert best_factors(measured, BUDGET) == best
    found = choose_factors(texts(measured), BUDGET).iloc[0]
    assert [found["best_factor"]] == best[:1] if best else found["best_factor"] is pd.NA


def test_a_feature_over_the_cap_keeps_its_unsteered_means_only() -> None:
    row = choose_factors(texts({0.0: (1, 10), 1.0: (4, 12)}), PAPER).iloc[0]
    assert row[["best_factor", "success_20", "perplexity", "texts"]].isna().all()
    assert (row["success_20_unsteered"], row["perplexity_unsteered"]) == (1, 10)


def test_one_text_without_perplexity_is_left_out_of_the_mean() -> None:
    table = pd.concat([texts({1.0: (1, 10)}), texts({1.0: (2, NAN)})], ignore_index=True)
    row = choose_factors(table, PAPER).iloc[0]
    assert (row["perplexity"], row["success_20"], row["texts"]) == (10, 1.5, 2)


def test_undecided_choices_are_counted() -> None:
    table = pd.concat(
        [
            texts({0.0: (0, 10), 1.0: (4, 12)}, feature=1),
            texts({0.0: (0, 10), 1.0: (0, 12), 2.0: (0, 12)}, feature=2),
            texts({0.0: (0, 10), 1.0: (1, 12), 2.0: (2, 24)}, feature=3),
            texts({0.0: (0, 10), 1.0: (1, 12), 2.0: (2, 12)}, feature=4),
        ],
        ignore_index=True,
    )
    assert choice_counts(table, PAPER) == (4, 1, 1, 2)


def test_split_chooses_on_every_second_prompt_and_reports_on_the_others() -> None:
    table = both_arms()
    first = table["prompt"].isin(["In the", "Note that"])  # of In the, It is, Note that, We
    found = choose_factors(table, ChoiceConfig(split=True))
    expected = choose_factors(table.loc[first], PAPER)
    assert chosen(found) == chosen(expected)
    assert set(found["texts"].dropna()) == {2}
    means = by_factor(table.loc[~first]).set_index([*FEATURE, "factor"])
    for row in found.to_dict("records"):
        control = np.nan if pd.isna(row["control"]) else row["control"]
        key = (*(row[name] for name in FEATURE[:5]), control, np.nan, np.nan, row["best_factor"])
        assert row["success_20"] == means.loc[key, "success_20"]


@pytest.mark.parametrize("name", ["success_1", "success_5", "concept_success"])
def test_another_count_of_success_may_be_what_is_chosen_by(name: str) -> None:
    table = both_arms()
    other = table["success_20"].to_numpy()[::-1]  # in no step with success_20
    expected = chosen(choose_factors(table.assign(success_20=other), PAPER))
    assert expected != chosen(choose_factors(table, PAPER))
    found = choose_factors(table.assign(**{name: other}), ChoiceConfig(success=name))
    assert chosen(found) == expected
    with pytest.raises(SteerlensError, match=f"no {name}"):
        choose_factors(table.assign(**{name: None}), ChoiceConfig(success=name))


def test_what_cannot_be_chosen_is_refused_in_a_sentence() -> None:
    table = both_arms()
    with pytest.raises(SteerlensError, match=r"choice\.rule"):
        choose_factors(table, ChoiceConfig(rule="papr"))
    with pytest.raises(SteerlensError, match="no success_20"):
        choose_factors(table.assign(success_20=None), PAPER)
    with pytest.raises(SteerlensError, match="factor 0"):
        choose_factors(table.loc[table["factor"] > 0], BUDGET)
    with pytest.raises(SteerlensError, match="two prompts"):
        choose_factors(table.loc[table["prompt"] == "We"], ChoiceConfig(split=True))
    assert choose_factors(table.head(0), PAPER).empty


COSTS: Any = {
    1: FactorMeans(1, 10, kl=0.2, relative_dose=0.1),
    2: FactorMeans(4, 14, kl=0.9, relative_dose=0.4),
    4: FactorMeans(6, 16, kl=1.1, relative_dose=0.6),
    8: FactorMeans(9, 40, kl=3.0, relative_dose=0.9),
    0: FactorMeans(0, 10, kl=0.0, relative_dose=0.0),
}


@pytest.mark.parametrize(
    ("choice", "best", "safe"),
    [
        ({"rule": "kl"}, [2], (1, 2)),
        ({"rule": "kl", "kl_budget": 1.1}, [4], (1, 4)),
        ({"rule": "kl", "kl_budget": 0.1}, [], (NAN, NAN)),
        ({"rule": "dose"}, [4], (1, 4)),
        ({"rule": "dose", "dose_budget": 0.1}, [1], (1, 1)),
        ({"rule": "perplexity_ratio"}, [2], (1, 2)),
        ({"rule": "perplexity_ratio", "perplexity_ratio": 1.6}, [4], (1, 4)),
        ({"rule": "budget", "perplexity_budget": 4.0}, [8], (1, 8)),
        ({"success_cap": 4.0}, [2], (1, 2)),
    ],
)
def test_most_success_within_a_budget_and_the_factors_around_it(
    choice: dict[str, Any], best: list[float], safe: tuple[float, float]
) -> None:
    settings = ChoiceConfig(**choice)
    assert best_factors(COSTS, settings) == best
    assert safe_range(COSTS, best, settings) == pytest.approx(safe, nan_ok=True)


def test_the_safe_range_ends_at_a_factor_that_isnt_allowed_and_at_the_other_sign() -> None:
    kl = ChoiceConfig(rule="kl")
    costs = {-1: 0.1, 0: 0.0, 0.5: 0.1, 1: 2.0, 2: 0.5, 4: 0.7, 8: NAN}
    measured: Measured = {factor: FactorMeans(factor, 1, kl=cost) for factor, cost in costs.items()}
    assert best_factors(measured, kl) == [4]
    assert safe_range(measured, [4], kl) == (2, 4)
    assert safe_range(measured, [-1], kl) == (-1, -1)
    assert safe_range(measured, [0.5], kl) == (0.5, 0.5)


def test_the_table_has_the_range_of_each_feature_and_its_costs() -> None:
    table = texts({factor: means[:2] for factor, means in COSTS.items()})
    for name in ("kl", "relative_dose"):
        table[name] = [getattr(COSTS[factor], name) for factor in table["factor"]]
    both = pd.concat([table, table.assign(control="random_direction", kl=9.0)])
    steering = choose_factors(both, ChoiceConfig(rule="kl"))
    own = steering.loc[steering["control"].isna()].iloc[0]
    assert own[["best_factor", "safe_factor_low", "safe_factor_high"]].tolist() == [2, 1, 2]
    assert own[["kl", "relative_dose"]].tolist() == [0.9, 0.4]
    control = steering.loc[steering["control"].notna()].iloc[0]
    names = ["best_factor", "safe_factor_low", "safe_factor_high", "kl", "success_20"]
    assert control[names].isna().all()


def test_every_rule_says_what_a_feature_without_a_factor_is_beyond() -> None:
    said = {rule: no_factor(ChoiceConfig(rule=rule)) for rule in parts_of("rules")}
    assert said["kl"] == (
        "no factor may be chosen: at all of them the divergence from the unsteered model is over "
        "1 nat a token (choice.rule=kl)"
    )
    assert len({sentence.partition(":")[2] for sentence in said.values()}) == len(said)
    assert "over 0.5 of the residual" in no_factor(ChoiceConfig(rule="dose", dose_budget=0.5))
    assert no_factor(None) == "no factor may be chosen"


def test_a_rule_whose_cost_was_not_measured_is_refused() -> None:
    table = texts({0: (0, 10), 2: (4, 14)})
    with pytest.raises(SteerlensError, match="=kl weighs success against kl"):
        choose_factors(table, ChoiceConfig(rule="kl"))
    with pytest.raises(SteerlensError, match="perplexity_ratio needs the perplexity of texts at"):
        choose_factors(texts({2: (4, 14)}), ChoiceConfig(rule="perplexity_ratio"))


def rated(ratings: Mapping[float, list[float]], feature: int = 0) -> pd.DataFrame:
    """Texts of one feature on four prompts, with their ratings at each factor, without success."""
    parts = [
        texts({factor: (0, 10)}, feature).assign(prompt=prompt, rating=rating)
        for factor, of_factor in ratings.items()
        for prompt, rating in zip("abcd", of_factor, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def test_a_judge_chooses_on_every_second_prompt_and_the_others_are_reported() -> None:
    table = pd.concat(
        [
            # Best at 2 on a and c; at 4 on b and d, and on all together.
            rated({0: [2, 2, 2, 2], 2: [2, 0, 1, 1], 4: [1, 2, 1, 2], 8: [0, 0, 0, 0]}),
            rated({0: [0] * 4, 2: [NAN, 0, NAN, 0], 4: [1, NAN, NAN, NAN]}, feature=1),
            rated({0: [0] * 4, 2: [NAN, 1, NAN, 1]}, feature=2),
            rated({0: [0] * 4, 2: [0] * 4, 4: [0] * 4}, feature=3),
        ]
    )
    judge = ChoiceConfig(rule="judge")
    names = ["best_factor", "safe_factor_high", "rating"]
    steering = choose_factors(table, judge).set_index("feature").astype(dict.fromkeys(names, float))
    assert steering["best_factor"].tolist() == pytest.approx([2, 4, NAN, 2], nan_ok=True)
    assert steering["safe_factor_high"].tolist() == pytest.approx([8, 4, NAN, 4], nan_ok=True)
    assert steering["rating"].tolist() == pytest.approx([0.5, NAN, NAN, 0], nan_ok=True)
    assert steering["undecided"].fillna(value=False).tolist() == [False, False, False, True]
    counts = choice_counts(table, judge)
    assert (counts.without_factor, counts.without_success, counts.tied) == (1, 1, 1)
    with pytest.raises(SteerlensError, match="no text is rated, so no factor"):
        choose_factors(rated({0: [1] * 4, 2: [NAN] * 4}), judge)
    with pytest.raises(SteerlensError, match="no text is rated, so no factor"):
        choose_factors(rated({0: [1] * 4, 2: [1] * 4}).drop(columns="rating"), judge)


@pytest.mark.parametrize("rule", ["kl", "dose", "perplexity_ratio"])
def test_the_search_knows_every_rule(rule: str) -> None:
    known = search({float(factor): means for factor, means in COSTS.items()}, tuple(COSTS),
                   ChoiceConfig(rule=rule))  # fmt: skip
    assert best_factors(known, ChoiceConfig(rule=rule)) == best_factors(
        COSTS, ChoiceConfig(rule=rule)
    )


@pytest.mark.parametrize("rule", ["paper", "kl"])
def test_the_range_after_a_search_is_the_widest_of_tried_factors_that_are_all_allowed(
    rule: str,
) -> None:
    rng, choice, ranges, without = np.random.default_rng(3), ChoiceConfig(rule=rule), set(), 0
    grid = (*(-factor for factor in GRID), 0.0, *GRID)
    for _ in range(60):
        strength = rng.lognormal(1, 2)  # so that of some features every factor is too much
        kl = {factor: strength * abs(factor) * rng.lognormal(-1, 1) for factor in grid}
        curve: Measured = {
            factor: FactorMeans(5 * rng.random() * (factor != 0), 10.0, kl=kl[factor])
            for factor in grid
        }
        known = search(curve, grid, choice)
        means = {factor: FactorMeans(*of_factor) for factor, of_factor in known.items()}
        allowed = [
            f for f in means if (means[f].kl <= 1 if rule == "kl" else means[f].success <= 3)
        ]
        best = best_factors(known, choice)
        low, high = safe_range(known, best, choice)
        if not best:
            assert np.isnan([low, high]).all()
            without += 1
            continue
        tried = sorted(factor for factor in known if factor * best[0] > 0)
        windows = [
            (tried[i], tried[j]) for i in range(len(tried)) for j in range(i, len(tried))
            if {*tried[i : j + 1]} <= {*allowed} and tried[i] <= best[0] <= tried[j]
        ]  # fmt: skip
        assert (low, high) == max(windows, key=lambda ends: ends[1] - ends[0])
        ranges.add((low, high))
    assert len(ranges) > 20
    assert rule == "paper" or without > 3


def search(measured: Measured, grid: tuple[float, ...], choice: ChoiceConfig = PAPER) -> Measured:
    """What a search from coarse to fine has measured when it is done."""
    known: dict[float, Any] = {}
    while ask := next_factors(grid, known, choice):
        assert not {*ask} & {*known}
        known |= {factor: measured[factor] for factor in ask}
    return known


@pytest.mark.parametrize("peak", range(12))
def test_the_search_finds_any_single_peak(peak: int) -> None:
    measured = {factor: (1 / (1 + abs(i - peak)), 10.0) for i, factor in enumerate(GRID)}
    known = search(measured, GRID)
    assert best_factors(known, PAPER) == [GRID[peak]]
    assert len(known) <= 8


def test_the_search_ends_where_both_neighbours_of_the_best_are_measured() -> None:
    success = {5: 1.0, 7: 2.0, 8: 0.5}
    measured = {factor: (success.get(i, 0.0), 10.0) for i, factor in enumerate(GRID)}
    assert sorted(search(measured, GRID)) == [GRID[i] for i in (2, 3, 4, 5, 6, 7, 8, 11)]


def test_the_search_goes_below_what_is_over_the_cap() -> None:
    measured = {factor: (2.0 if factor < 0.5 else 4.0, 10.0) for factor in GRID}
    assert best_factors(search(measured, GRID), PAPER) == [0.2, 0.4]
    known = search(dict.fromkeys(GRID, (4.0, 10.0)), GRID)
    assert sorted(known) == [0.2, 0.4, 0.8, 2, 6, 20]


def test_the_search_takes_both_signs_and_the_budgets_zero() -> None:
    grid = (*(-factor for factor in GRID), 0.0, *GRID)
    for peak in grid:
        measured = {f: (0.0 if f == 0 else 1 / (1 + abs(f - peak)), 10.0) for f in grid}
        known = search(measured, grid, BUDGET)
        assert best_factors(known, BUDGET) == best_factors(measured, BUDGET)
        assert 0.0 in known
    assert next_factors((), {}) == []
    assert next_factors((2.0,), {}) == [2.0]


def simulated(rng: np.random.Generator, noisy: bool) -> Measured:
    """One feature: a quarter never succeed, the others more and more up to a top, half of them
    less again when the text collapses and its perplexity rises; 50 texts a factor if `noisy`."""
    factors = np.array(GRID)
    success = min(20, np.exp(rng.normal(0.3, 1.2))) * (rng.random() > 0.25)
    middle = np.exp(rng.normal(1.3, 1))
    success = success / (1 + (middle / factors) ** rng.uniform(1.5, 5))
    collapse = (factors / (middle * np.exp(rng.normal(0.6, 1)))) ** 2
    if rng.random() < 0.5:
        success = success / (1 + collapse)
    perplexity = np.exp(2.6 + 3 * collapse / (1 + collapse))
    if noisy:
        spread = rng.gamma(0.7, 1 / 0.7, (50, len(GRID)))
        success = np.minimum(rng.poisson(success * spread), 20).mean(axis=0)
        perplexity = (perplexity * np.exp(rng.normal(0, 0.5, spread.shape))).mean(axis=0)
    pairs = zip(success.tolist(), perplexity.tolist(), strict=True)
    return dict(zip(GRID, pairs, strict=True))


@pytest.mark.parametrize(("noisy", "agree", "used"), [(False, 0.98, 0.68), (True, 0.93, 0.68)])
def test_the_search_agrees_with_the_whole_grid_on_most_features(
    noisy: bool, agree: float, used: float
) -> None:
    rng = np.random.default_rng(0)
    curves = [simulated(rng, noisy) for _ in range(500)]
    known = [search(curve, GRID) for curve in curves]
    same = [
        best_factors(found, PAPER)[:1] == best_factors(curve, PAPER)[:1]
        for found, curve in zip(known, curves, strict=True)
    ]
    assert np.mean(same) >= agree
    assert np.mean([len(found) for found in known]) / len(GRID) <= used


def test_the_search_on_texts() -> None:
    grid = (0.0, *GRID)
    table = by_factor(generations(12, grid, layers=[0]))
    same = used = 0
    for _, rows in table.groupby("feature"):
        measured = {
            factor: (success, perplexity)
            for factor, success, perplexity in zip(
                rows["factor"], rows["success_20"], rows["perplexity"], strict=True
            )
        }
        known = search(measured, grid)
        same += best_factors(known, PAPER)[:1] == best_factors(measured, PAPER)[:1]
        used += len(known)
    assert same >= 9
    assert used <= 0.75 * 12 * len(grid)
