"""Does steering do more than a change of the same size that has nothing to do with the feature?

Features are amplified, suppressed and ablated (see `analysis.arms`). Beside each stand a random
direction and a random feature, perhaps one that never fires, steered as hard, that count the tokens
of the feature. Factors are compared one by one, and at the one chosen for every feature on half of
the prompts (to amplify, with most success; to suppress, with least, within a budget of perplexity),
where what is said is measured on the other half.

The tests ask of every feature whether its tokens are in more, or fewer, of the texts, pair by pair
of prompt and sample (an exact sign-flip test), and are corrected for the number of features
(Benjamini and Hochberg). Intervals are 95 % bootstrap intervals over features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from steerlens.analysis.arms import (
    ABLATION,
    AMPLIFY,
    FEATURE,
    KEYS,
    MEASURES,
    PAIR,
    SUPPRESS,
    UNSTEERED,
    Condition,
    ablation_arms,
    measured,
    signed_arms,
    texts_of,
)
from steerlens.analysis.paired import ALPHA, ENOUGH, NULL, Tested, tests_of
from steerlens.analysis.resampling import FEWEST, mean_estimate
from steerlens.analysis.series import Series
from steerlens.analysis.steering_summary import MOVED
from steerlens.config.schema import CONTROLS, ChoiceConfig, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.figures.arms import draw_arms
from steerlens.report.studies import Answer, interval_columns
from steerlens.results.text import interval_of

P, Q = f"p_{ALPHA}", f"q_{ALPHA}"


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """Return how many features' effects remain beside controls, and how far texts degenerate.

    Raises:
        SteerlensError: nothing was steered, or the same features were in the same way twice.
    """
    steered, ablated = (_texts(series, ablates) for ablates in (False, True))
    choices = [member.tables.choice for member in series if member.tables.operator != "ablate"]
    choice = next((choice for choice in choices if choice), ChoiceConfig())
    arms = [*signed_arms(steered, choice), *ablation_arms(ablated)]
    if not arms:
        raise SteerlensError("nothing was steered; add steer=signed or steer=ablation.")
    decisive = [arm for arm in arms if arm.decides]
    tests = [test for arm in decisive for test in tests_of(arm)]
    by_arm = pd.DataFrame(_arm_rows(arms))
    differences = pd.DataFrame([row for arm in arms for row in _differences(arm)])
    tables = {
        "controls": pd.DataFrame([_test_row(test) for test in tests]),
        "controls_arms": by_arm,
        "controls_differences": differences,
        "controls_features": _features(decisive, tests, series),
    }
    return Answer(
        sentences=[
            *_test_sentences(tests, decisive),
            *_separations(differences, decisive),
            *_left_out(arms, steered),
        ],
        tables={name: table for name, table in tables.items() if len(table)},
        figures={"controls": partial(draw_arms, by_arm)},
    )


def _texts(series: Sequence[Series], ablates: bool) -> pd.DataFrame:
    members = [member for member in series if (member.tables.operator == "ablate") == ablates]
    texts = texts_of([member.tables.generations for member in members])
    if texts.duplicated([*PAIR, "steered", "factor"]).any():
        raise SteerlensError(
            f"{' and '.join(member.label for member in members)} steer the same features at the "
            "same factors; this study wants one result of each."
        )
    return texts


def _test_row(test: Tested) -> dict[str, Any]:
    by_feature = test.by_feature
    less = by_feature["share"] - by_feature["share_other"]
    return {
        "arm": test.arm,
        "test": test.label,
        Q: test.remain,
        P: test.uncorrected,
        "by_chance": test.by_chance,
        "testable": test.testable,
        "features": len(by_feature),
        **{name: by_feature[name].mean() for name in ("pairs", "share", "share_other")},
        **interval_columns("difference", mean_estimate(less.to_numpy())),
    }


def _arm_rows(arms: Sequence[Condition]) -> list[dict[str, Any]]:
    """Return the measures of every arm; unsteered once over all texts, and beside each chosen
    factor.
    """
    first = arms[0].texts[UNSTEERED]
    rows = [_measures(UNSTEERED, "0", UNSTEERED, first)] if len(first) else []
    for arm in arms:
        names = (FEATURE, *CONTROLS, *([UNSTEERED] if arm.decides else []))
        rows += [
            _measures(arm.name, arm.label, name, arm.texts[name])
            for name in names
            if len(arm.texts.get(name, []))
        ]
    return rows


def _measures(arm: str, factor: str, steered: str, texts: pd.DataFrame) -> dict[str, Any]:
    means = measured(texts)
    return {
        "arm": arm,
        "factor": factor,
        "steered": steered,
        "features": len(means),
        **_estimates(means),
    }


def _differences(arm: Condition) -> list[dict[str, Any]]:
    """Return the feature less what stands beside it, feature by feature."""
    if FEATURE not in arm.texts:
        return []
    of_feature = measured(arm.texts[FEATURE])
    rows = []
    for name in (UNSTEERED, *CONTROLS):
        if len(arm.texts.get(name, [])):
            of_control = measured(arm.texts[name])
            common = of_feature.index.intersection(of_control.index)
            less = of_feature.loc[common] - of_control.loc[common]
            about = {
                "arm": arm.name,
                "factor": arm.label,
                "baseline": name,
                "features": len(common),
            }
            rows.append({**about, **_estimates(less)})
    return rows


def _estimates(means: pd.DataFrame) -> dict[str, float | None]:
    columns: dict[str, float | None] = {}
    for name in MEASURES:
        columns |= interval_columns(name, mean_estimate(means[name].dropna().to_numpy()))
    return columns


def _features(
    arms: Sequence[Condition], tests: Sequence[Tested], series: Sequence[Series]
) -> pd.DataFrame:
    """Return of every feature, by arm: factor, share of the texts with its tokens, and q-values."""
    columns: dict[str, Any] = {}
    for arm in arms:
        if FEATURE not in arm.texts:
            continue
        columns[f"{arm.name}_factor"] = arm.texts[FEATURE].groupby(KEYS)["wanted"].first()
        columns[f"{arm.name}_share"] = measured(arm.texts[FEATURE])["hit"]
        tests_of_arm = [test for test in tests if test.arm == arm.name]
        columns |= {f"{arm.name}_q_{test.baseline}": test.by_feature["q"] for test in tests_of_arm}
    if not columns:
        return pd.DataFrame()
    scores = pd.concat([member.tables.features for member in series], ignore_index=True)
    scores = scores.loc[~scores.duplicated(KEYS), [*KEYS, "output_score", "input_score"]]
    table = pd.DataFrame(columns).reset_index().merge(scores, how="left", on=KEYS)
    return table.drop(columns=[name for name in ("model", "sae") if len(set(table[name])) == 1])


def _test_sentences(tests: Sequence[Tested], arms: Sequence[Condition]) -> list[str]:
    sentences = []
    for arm in arms:
        tests_of_arm = [test for test in tests if test.arm == arm.name]
        if not tests_of_arm:
            continue
        where = "" if arm.name == ABLATION else " at the factor chosen on other prompts"
        how = "more" if arm.name == AMPLIFY else "fewer"
        sentences.append(
            f"{arm.name.capitalize()}{where}: features whose tokens are in {how} of the texts at "
            f"q <= {ALPHA} (at p <= {ALPHA} uncorrected; of these expected by chance) are "
            f"{_listed(f'{_counts(test)} against {test.baseline}' for test in tests_of_arm)}."
        )
        if arm.name != AMPLIFY:
            sentences.append(_floor(arm))
        if arm.name == ABLATION:
            moved = np.mean(arm.texts[FEATURE]["first_step_kl"] > MOVED)
            sentences.append(
                f"Ablation changes the first next-token distribution in {moved:.0%} of the texts; "
                "in the others the feature isn't active there."
            )
    if null := [test for test in tests if test.arm == NULL]:
        listed = _listed(f"{_counts(test)} for {test.label}" for test in null)
        sentences.append(f"The same test where nothing of the feature is steered finds {listed}.")
    return sentences


def _counts(test: Tested) -> str:
    n = len(test.by_feature)
    return f"{test.remain} of {n} ({test.uncorrected}; {test.by_chance:.2g})"


def _floor(arm: Condition) -> str:
    """Return how many features could have fewer of their tokens at all."""
    counts: Any = arm.texts[UNSTEERED].groupby(KEYS)["hit"].sum()
    hits = counts.to_numpy(dtype=int)
    return (
        f"Of {len(hits)} features, {sum(hits > 0)} have a token of theirs in any of these "
        f"unsteered texts, and {sum(hits >= ENOUGH)} in the {ENOUGH} that p <= {ALPHA} takes: "
        "of the others no reduction can be shown."
    )


def _separations(differences: pd.DataFrame, arms: Sequence[Condition]) -> list[str]:
    """Return what the features' means separate from, at the factors that were tested."""
    sentences = []
    for arm in arms:
        rows = differences.loc[
            (differences["arm"] == arm.name) & (differences["factor"] == arm.label)
        ].to_dict("records")
        few = max((row["features"] for row in rows), default=0)
        if rows and few < FEWEST:
            n = f"{few} feature{'s' * (few != 1)}"
            sentences.append(
                f"{arm.name.capitalize()}: {n} can't tell means apart; it takes at least {FEWEST}."
            )
            continue
        for measure, title in (("success_20", "success@20"), ("degeneracy", "degeneracy")):
            clear = [row for row in rows if _separated(row, measure)]
            changes = [f"{row['baseline']} by {interval_of(row, measure, '.3g')}" for row in clear]
            unclear = [row["baseline"] for row in rows if row not in clear]
            parts = [f"differs from {_listed(changes)}"]
            parts = parts * bool(clear)
            if unclear:
                parts.append(f"can't be told from {_listed(unclear)}")
            if parts:
                sentences.append(f"{arm.name.capitalize()}: mean {title} {'; it '.join(parts)}.")
    return sentences


def _separated(row: dict[str, Any], measure: str) -> bool:
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    return not (pd.isna(low) or pd.isna(high) or low <= 0 <= high)


def _left_out(arms: Sequence[Condition], texts: pd.DataFrame) -> list[str]:
    sentences = []
    names = {arm.name for arm in arms}
    for name, lacking in (
        (AMPLIFY, "no positive factor"),
        (SUPPRESS, "no negative factor"),
        (ABLATION, "no run with steer=ablation"),
    ):
        if name not in names:
            sentences.append(f"Nothing is said of {name}: there is {lacking}.")
    n = len(texts[KEYS].drop_duplicates())
    for name in (AMPLIFY, SUPPRESS):
        if name not in names:
            continue
        arm = next(
            (
                candidate
                for candidate in arms
                if candidate.name == name and candidate.factor is None
            ),
            None,
        )
        n_left_out = n - (len(measured(arm.texts[FEATURE])) if arm else 0)
        if n_left_out:
            sentences.append(
                f"{name.capitalize()}: {n_left_out} of {n} features have no chosen factor: none "
                "may be chosen, or there is only one prompt."
            )
    for control in CONTROLS:
        if not any(control in arm.texts for arm in arms):
            sentences.append(f"There is no {control}: add it to steer.controls.")
    return sentences


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)
