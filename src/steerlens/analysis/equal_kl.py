"""Success of every feature at the same KL from the unsteered model, between the factors tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steerlens.analysis.factors import FEATURE, by_factor

if TYPE_CHECKING:
    import pandas as pd


def success_at_kl(generations: pd.DataFrame, kl: float, success: str) -> pd.DataFrame:
    """Return each feature's mean success where its mean KL reaches `kl`, with the keys of a feature
    and `outcome`.

    Factors are of one sign, from 0 on; the first at which the mean KL is at least `kl` and the one
    before it are joined by a line. A feature that no factor brings that far is left out.

    Args:
        generations: texts of features, with `kl`.
        kl: in nats a token.
        success: the column that is success.
    """
    means = by_factor(generations).dropna(subset=["kl", success])
    means = means.loc[means["factor"] >= 0].sort_values(by="factor")
    features = means[[*FEATURE]].drop_duplicates(ignore_index=True)
    number = means.groupby(list(FEATURE), dropna=False, sort=False).ngroup().to_numpy()
    kl_M, success_M = (means[name].to_numpy(dtype=float) for name in ("kl", success))
    features["outcome"] = [
        _where_it_reaches(kl, kl_M[number == index], success_M[number == index])
        for index in range(len(features))
    ]
    return features.dropna(subset=["outcome"])


def _where_it_reaches(kl: float, kl_K: np.ndarray, success_K: np.ndarray) -> float:
    (far_enough,) = np.nonzero(kl_K >= kl)
    if not len(far_enough) or far_enough[0] == 0:
        return np.nan
    step = slice(far_enough[0] - 1, far_enough[0] + 1)
    return float(np.interp(kl, kl_K[step], success_K[step]))
