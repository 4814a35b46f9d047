"""Texts of steered features as arrays, by feature, factor and prompt; what rules choose on them.

Dimension letters: F features, K factors, P prompts.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlens.analysis.factors import FactorMeans, Measured, best_factors
from steerlens.results import FEATURES, features_alone

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.config.schema import ChoiceConfig


@dataclass(frozen=True)
class TextGrid:
    """Means over a feature's samples, by factor and prompt; NaN where there is no text."""

    layers_F: np.ndarray
    groups_F: np.ndarray
    """Numbers of the layers, from 0."""
    factors_K: np.ndarray
    """Rising, with 0."""
    success_FKP: np.ndarray
    perplexity_FKP: np.ndarray
    kl_FKP: np.ndarray
    relative_dose_FKP: np.ndarray
    degeneracy_FKP: np.ndarray

    @property
    def n_prompts(self) -> int:
        """How many prompts there are."""
        return self.success_FKP.shape[2]

    def on(self, prompts: np.ndarray) -> PromptMeans:
        """Return the means over some prompts, by their numbers."""
        return PromptMeans(
            self.factors_K,
            *(
                nan_mean(values_FKP[:, :, prompts], axis=2)
                for values_FKP in (
                    self.success_FKP,
                    self.perplexity_FKP,
                    self.kl_FKP,
                    self.relative_dose_FKP,
                    self.degeneracy_FKP,
                )
            ),
        )


@dataclass(frozen=True)
class PromptMeans:
    """Means of every feature at every factor, over some prompts."""

    factors_K: np.ndarray
    success_FK: np.ndarray
    perplexity_FK: np.ndarray
    kl_FK: np.ndarray
    relative_dose_FK: np.ndarray
    degeneracy_FK: np.ndarray

    @property
    def perplexity_ratio_FK(self) -> np.ndarray:
        """Perplexity over that of the feature's unsteered texts."""
        return self.perplexity_FK / self.perplexity_FK[:, self.factors_K == 0]

    def measured(self) -> list[Measured]:
        """Return what rules are given, feature by feature: factors without a text are left out."""
        every = np.stack(
            [self.success_FK, self.perplexity_FK, self.kl_FK, self.relative_dose_FK], axis=2
        )
        return [
            {
                float(factor): FactorMeans(*means)
                for factor, means in zip(self.factors_K, of_feature.tolist(), strict=True)
                if not np.isnan(means[0])
            }
            for of_feature in every
        ]

    def at(self, chosen_F: np.ndarray, name: str) -> np.ndarray:
        """Return a mean of each feature at the index of its factor, (F,)."""
        return getattr(self, f"{name}_FK")[np.arange(len(chosen_F)), chosen_F]


def text_grid(generations: pd.DataFrame, success: str) -> TextGrid:
    """Return the texts of features alone as arrays.

    Args:
        generations: of one run.
        success: the column that counts as success.
    """
    names = {
        "success": success,
        "perplexity": "perplexity",
        "kl": "kl",
        "relative_dose": "relative_dose",
        "degeneracy": "degeneracy",
    }
    keys = list(FEATURES.keys)
    texts = features_alone(generations)
    texts = texts[[*keys, "factor", "prompt", *names.values()]].astype(
        {**dict.fromkeys(names.values(), float), "factor": float}
    )
    groups: Any = texts.groupby([*keys, "factor", "prompt"], dropna=False)
    means = groups.mean().reset_index()
    features = means[keys].drop_duplicates(ignore_index=True).sort_values(keys, ignore_index=True)
    features = features.assign(index=range(len(features)))
    at_F = means[keys].merge(features, how="left", on=keys)["index"].to_numpy(int)
    factors_K, at_K = np.unique(means["factor"].to_numpy(), return_inverse=True)
    prompts, at_P = np.unique(means["prompt"].to_numpy(dtype=str), return_inverse=True)
    arrays = []
    for column in names.values():
        values_FKP = np.full((len(features), len(factors_K), len(prompts)), np.nan)
        values_FKP[at_F, at_K, at_P] = means[column].to_numpy(float)
        arrays.append(values_FKP)
    layer_keys = [key for key in keys if key != "feature"]
    groups_F = features.groupby(layer_keys, dropna=False).ngroup().to_numpy(int)
    return TextGrid(features["layer"].to_numpy(int), groups_F, factors_K, *arrays)


def halves_of_prompts(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every second prompt, and the others."""
    return np.arange(0, n, 2), np.arange(1, n, 2)


def chosen_factors(means: PromptMeans, choice: ChoiceConfig) -> np.ndarray:
    """Return the index of each feature's best factor, (F,); that of 0 where none may be chosen."""
    zero = int(np.flatnonzero(means.factors_K == 0)[0])
    best = [best_factors(measured, choice) for measured in means.measured()]
    return np.array(
        [np.searchsorted(means.factors_K, factors[0]) if factors else zero for factors in best],
        dtype=int,
    )


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of what isn't NaN; NaN of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
        return np.nanmean(values, axis=axis)
