"""What does steering cost the model? Accuracy on tasks against the factor, beside success.

The features and each control are lines of their own. An accuracy is the mean over features of the
share of items that they leave right; its interval is over the items, each of which counts with its
mean over the features, so it says what other items of the task would give, not other features.
What an accuracy differs by from the unsteered one is compared item by item. Success is the mean
over features of the means of their texts, with an interval over features. Intervals are 95 %
bootstrap intervals; fewer than 8 items or features have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from steerlens.analysis.resampling import FEWEST, mean_estimate
from steerlens.analysis.series import Series
from steerlens.config.schema import ChoiceConfig, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.figures.capability import draw_capability
from steerlens.report.studies import Answer, interval_columns
from steerlens.results.text import interval_of

KEYS = ["model", "sae", "layer", "feature"]
FEATURE = "feature"
"""The arm of the features themselves; the others have the names of the controls."""


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """Return accuracy and success at every factor, and what each feature costs at its best one.

    Raises:
        SteerlensError: no tasks were evaluated, or the same features were twice.
    """
    answers = _with_arms(pd.concat([member.tables.capability for member in series]))
    if answers.empty:
        raise SteerlensError("no tasks were evaluated; add evaluate.tasks=[definitions].")
    if answers.duplicated([*KEYS, "arm", "task", "factor"]).any():
        raise SteerlensError("the same features are evaluated twice; this study wants one result.")
    texts = _with_arms(pd.concat([member.tables.generations for member in series]))
    steering = _with_arms(pd.concat([member.tables.steering for member in series]))
    choice = next((m.tables.choice for m in series if m.tables.choice), ChoiceConfig())
    by_factor = pd.DataFrame(_by_factor(answers, texts, choice.success))
    features = _features(answers, steering, choice.success)
    return Answer(
        sentences=_sentences(by_factor, features, choice.success),
        tables={"capability": by_factor, "capability_features": features},
        figures={"capability": partial(draw_capability, by_factor, choice.success)},
    )


def _with_arms(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of single features and of their controls, with the arm that each is of."""
    alone = rows.loc[rows["together"].isna()]
    return alone.assign(arm=alone["control"].fillna(FEATURE))


def _by_factor(answers: pd.DataFrame, texts: pd.DataFrame, success: str) -> list[dict[str, Any]]:
    unsteered = answers.loc[answers["factor"] == 0]
    before_of = {
        str(task): _means_of_items(rows) for task, rows in unsteered.groupby("task", sort=False)
    }
    rows = []
    groups: Any = answers.groupby(["task", "arm", "factor"], sort=False)
    for (task, arm, factor), part in groups:
        scores_N = _means_of_items(part)
        at_factor = texts.loc[(texts["arm"] == arm) & (texts["factor"] == factor)]
        means = at_factor.groupby(KEYS)[success].mean().dropna().to_numpy(dtype=float)
        changed, worse = int(part["changed"].sum()), int(part["worse"].sum())
        rows.append(
            {
                "task": task,
                "steered": arm,
                "factor": float(factor),
                "features": len(part),
                "items": len(scores_N),
                **interval_columns("accuracy", mean_estimate(scores_N)),
                **interval_columns("change", mean_estimate(scores_N - before_of[str(task)])),
                "changed": changed / float(part["items"].sum()),
                "side_effect_ratio": worse / changed if changed else None,
                **interval_columns(success, mean_estimate(means)),
            }
        )
    return sorted(rows, key=lambda row: (row["task"], row["steered"] != FEATURE, row["factor"]))


def _means_of_items(rows: pd.DataFrame) -> np.ndarray:
    """Return for each item of a task the mean of what it counts over the rows, (N,)."""
    return np.mean([np.asarray(scores, dtype=float) for scores in rows["item_scores"]], axis=0)


def _features(answers: pd.DataFrame, steering: pd.DataFrame, success: str) -> pd.DataFrame:
    """Return what steering with each feature, or its control, costs at its best factor, by task."""
    by = [*KEYS, "arm"]
    best = steering.loc[steering["best_factor"].notna(), [*by, "best_factor", success]]
    columns = ["accuracy", "accuracy_unsteered", "changed", "side_effect_ratio"]
    table = best.merge(
        answers[[*by, "task", "factor", *columns]],
        left_on=[*by, "best_factor"],
        right_on=[*by, "factor"],
    )
    table = table.assign(change=table["accuracy"] - table["accuracy_unsteered"])
    table = table.rename(columns={"arm": "steered"})
    ordered = ["layer", "feature", "steered", "task", "factor", success, "accuracy", "change"]
    ordered += ["changed", "side_effect_ratio"]
    named = [name for name in ("model", "sae") if len(set(table[name])) > 1]
    return table[[*named, *ordered]].sort_values(
        by=["layer", "feature", "steered", "task"], ignore_index=True
    )


def _sentences(by_factor: pd.DataFrame, features: pd.DataFrame, success: str) -> list[str]:
    sentences = []
    name = success.replace("success_", "success@").replace("_", " ")
    of_features = by_factor.loc[by_factor["steered"] == FEATURE]
    for task, rows in of_features.groupby("task", sort=False):
        first = rows.loc[rows["factor"] == 0].to_dict("records")
        accuracies = [
            f"at factor {row['factor']:g} {interval_of(row, 'accuracy', '.0%')}"
            + ("" if pd.isna(row[success]) else f", {name} {row[success]:.2f}")
            for row in rows.loc[rows["factor"] != 0].to_dict("records")
        ]
        before = f"{interval_of(first[0], 'accuracy', '.0%')} unsteered; " if first else ""
        sentences.append(
            f"Accuracy on {task} ({rows['items'].iloc[0]} items, {rows['features'].iloc[0]} "
            f"features): {before}{'; '.join(accuracies)}."
        )
    for units in ("items", "features"):
        if (fewest := int(of_features[units].min())) < FEWEST:
            measured = "accuracies" if units == "items" else "means of success"
            sentences.append(
                f"{fewest} {units if fewest > 1 else units[:-1]} can't tell {measured} apart; it "
                f"takes at least {FEWEST}."
            )
    lost = of_features.loc[of_features["change_high"] < 0]
    steered = of_features.loc[of_features["factor"] != 0]
    if len(steered):
        sentences.append(
            f"Of {len(steered)} pairs of task and factor, steering with the features lowers the "
            f"accuracy in {len(lost)}, item by item beside the unsteered model."
        )
    changed = steered.loc[steered["side_effect_ratio"].notna()]
    if len(changed):
        ratio = np.average(changed["side_effect_ratio"], weights=changed["changed"])
        sentences.append(f"Of the answers that steering has changed, {ratio:.0%} got worse.")
    best = features.loc[features["steered"] == FEATURE]
    if len(best):
        n = len(best[["layer", "feature"]].drop_duplicates())
        sentences.append(
            f"At its best factor, a feature changes the accuracy by {best['change'].mean():+.1%} "
            f"(mean over {n} feature{'s' * (n > 1)} and all tasks)."
        )
    for control, rows in by_factor.groupby("steered", sort=False):
        if control != FEATURE:
            strongest = rows.loc[rows["factor"].abs() == rows["factor"].abs().max()]
            sentences.append(
                f"A {str(control).replace('_', ' ')} as strong changes it by "
                f"{strongest['change'].mean():+.1%} at the strongest factor (mean over tasks)."
            )
    return sentences
