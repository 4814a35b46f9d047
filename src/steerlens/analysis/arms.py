"""Texts by arm: what was done to them, how strongly, and with what in the feature's place.

Arms are amplify (positive factors), suppress (negative factors) and ablation (operator ablate at
factor 1). In each, a feature stands beside its controls at the same factor, and beside its texts
without steering.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from steerlens.analysis.factors import MEANS, choose_factors, halves
from steerlens.config.schema import ChoiceConfig
from steerlens.results import FEATURES, GENERATIONS

if TYPE_CHECKING:
    import pandas as pd

KEYS = list(FEATURES.keys)
PAIR = [*KEYS, "prompt", "sample"]
"""What texts of two arms have in common that are compared with each other."""

MEASURES = ["success_20", "perplexity", "degeneracy", "distinct_2", "first_step_kl"]

AMPLIFY, SUPPRESS, ABLATION = "amplify", "suppress", "ablation"
FEATURE, UNSTEERED, AGAIN = "feature", "unsteered", "unsteered again"
"""What is steered, beside the controls: the feature; nothing; nothing, with other seeds."""


@dataclass(frozen=True)
class Condition:
    """Texts that are compared with each other."""

    name: str
    factor: float | None
    """Of all features; null = the factor chosen for each, on the prompts that aren't in `texts`."""
    texts: Mapping[str, pd.DataFrame]
    """By what is steered; `wanted` is the factor of the arm, `hit` that the text has success@20."""

    @property
    def label(self) -> str:
        """Give what tables and figures call it."""
        return "chosen" if self.factor is None else f"{self.factor:g}"

    @property
    def decides(self) -> bool:
        """Whether it stands for its name: there is one such arm of each name."""
        return self.factor is None or self.name == ABLATION


def texts_of(generations: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the texts of features and controls (not of features steered together), in one
    table.
    """
    import pandas as pd

    columns = list(dict.fromkeys([*GENERATIONS.keys, *MEANS, *MEASURES]))
    frames = [table[columns] for table in generations]
    texts = pd.concat(frames or [GENERATIONS.frame([])[columns]], ignore_index=True)
    together: Any = texts["together"]
    texts = texts.loc[together.isna()].reset_index(drop=True)
    texts = texts.astype(dict.fromkeys(("factor", *MEANS, *MEASURES), float))
    control: Any = texts["control"]
    return texts.assign(steered=control.fillna(FEATURE).astype(str), hit=texts["success_20"] > 0)


def signed_arms(texts: pd.DataFrame, choice: ChoiceConfig) -> Iterator[Condition]:
    """Amplify and suppress at every factor and, with two prompts or more, at the chosen one."""
    prompts: Any = texts.groupby(KEYS)["prompt"].nunique()
    can_split = min(prompts.tolist(), default=0) > 1
    for name, sign in ((AMPLIFY, 1), (SUPPRESS, -1)):
        factors = {factor for factor in texts["factor"].tolist() if sign * factor > 0}
        for factor in sorted(factors, key=abs):
            yield Condition(name, factor, _beside(texts.assign(wanted=factor)))
        if factors and can_split:
            chosen = _chosen(texts, sign, choice)
            if len(chosen):
                yield Condition(name, None, _beside(halves(texts)[1].merge(chosen, on=KEYS)))


def ablation_arms(texts: pd.DataFrame) -> Iterator[Condition]:
    """Zero ablation, from the texts with the operator ablate."""
    if 1.0 in texts["factor"].tolist():
        yield Condition(ABLATION, 1.0, _beside(texts.assign(wanted=1.0)))


def measured(texts: pd.DataFrame) -> pd.DataFrame:
    """Return the means of every feature, by `KEYS`; `hit` is the share of its texts with its
    tokens.
    """
    means: Any = texts.groupby(KEYS)[[*MEASURES, "hit"]].mean()
    return means


def _chosen(texts: pd.DataFrame, sign: int, choice: ChoiceConfig) -> pd.DataFrame:
    """Return each feature's factor `wanted` of one sign, where it has any, chosen on half of the
    prompts.

    To suppress, the best factor is the one with the least success; only a budget of perplexity says
    then what is too strong.
    """
    choice = replace(choice, success="success_20", split=True)
    features_own = texts.loc[(texts["steered"] == FEATURE) & (sign * texts["factor"] >= 0)]
    if sign < 0:
        features_own, choice = (
            features_own.assign(success_20=-features_own["success_20"]),
            replace(choice, rule="budget"),
        )
    chosen = choose_factors(features_own, choice).dropna(subset="best_factor")
    return chosen[KEYS].assign(wanted=chosen["best_factor"].astype(float))


def _beside(texts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the texts at their `wanted` factor by what is steered, and those without steering."""
    at_it, at_0 = texts.loc[texts["factor"] == texts["wanted"]], texts.loc[texts["factor"] == 0]
    by_arm = {str(name): rows for name, rows in at_it.groupby("steered")}
    plain = {str(name): rows for name, rows in at_0.groupby("steered")}
    by_arm[UNSTEERED] = plain.pop(FEATURE, at_0.iloc[:0])
    if plain:  # a control's texts at factor 0 have seeds of their own
        by_arm[AGAIN] = next(iter(plain.values()))
    return by_arm
