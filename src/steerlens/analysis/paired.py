"""Whether a feature's tokens are in more texts of one arm than of another, for many features.

Texts are compared pair by pair of prompt and sample. Dimension letters: N features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom, false_discovery_control

from steerlens.analysis.arms import AGAIN, AMPLIFY, FEATURE, KEYS, PAIR, UNSTEERED, Condition
from steerlens.config.schema import CONTROLS, RANDOM_DIRECTION, RANDOM_FEATURE

ALPHA = 0.05
"""The level of single tests, and the share of false discoveries (q)."""

ENOUGH = math.ceil(-math.log2(ALPHA))
"""So many pairs must differ for p <= ALPHA."""

NULL = "nothing"
"""The `arm` of comparisons that ought to find nothing; pandas would read "null" as no name."""


@dataclass(frozen=True)
class Tested:
    """One comparison over all features."""

    arm: str
    condition: str
    baseline: str
    more: bool
    """Whether more of `condition` than of `baseline` are to have the feature's tokens, or fewer."""
    by_feature: pd.DataFrame
    """See `compared`."""

    @property
    def label(self) -> str:
        """Give what tables and figures call it."""
        return f"{self.condition} {'>' if self.more else '<'} {self.baseline}"

    @property
    def remain(self) -> int:
        """Features that are left at q <= ALPHA."""
        return int(sum(self.by_feature["q"] <= ALPHA))

    @property
    def uncorrected(self) -> int:
        """Features with p <= ALPHA."""
        return int(sum(self.by_feature["p"] <= ALPHA))

    @property
    def by_chance(self) -> float:
        """How many would have p <= ALPHA on average if nothing were to be found."""
        return float(chance_of(ALPHA, self.by_feature["differ"].to_numpy()).sum())

    @property
    def testable(self) -> int:
        """Features that could have p <= ALPHA, had every pair with room for it gone that way."""
        return int(sum(self.by_feature["room"] >= ENOUGH))


def tests_of(arm: Condition) -> list[Tested]:
    """Return the feature against all that stands beside it; of amplify also what ought to be
    equal.
    """
    contrasts = [(arm.name, FEATURE, control) for control in (UNSTEERED, *CONTROLS)]
    if arm.name == AMPLIFY:
        equal = (RANDOM_DIRECTION, RANDOM_FEATURE)
        contrasts += [(NULL, *equal), (NULL, *equal[::-1]), (NULL, AGAIN, UNSTEERED)]
    more = arm.name == AMPLIFY
    tests = []
    for name, *both in contrasts:
        first, second = (arm.texts.get(steered) for steered in both)
        if first is not None and second is not None and len(second):
            pairs = first.merge(second, on=PAIR, suffixes=("", "_other"))
            tests.append(Tested(name, both[0], both[1], more, compared(pairs, more)))
    return tests


def compared(pairs: pd.DataFrame, more: bool) -> pd.DataFrame:
    """Return of every feature, by its keys, how two arms compare over its pairs of texts.

    Columns: `pairs`, how many `differ`, in how many there is `room` for what is tested, the `share`
    of texts with a hit, `share_other`, and `p` and `q` of there being more hits, or fewer.

    Args:
        pairs: one row per pair, with the features' keys, and whether the one text has a `hit`, and
            the other one, `hit_other`.
        more: whether more hits than in the other are looked for; else fewer.
    """
    has, had = (pairs[name].to_numpy(dtype=bool) for name in ("hit", "hit_other"))
    up, down = has & ~had, had & ~has
    sides = {"for_it": up, "against": down} if more else {"for_it": down, "against": up}
    marked = pairs[[*KEYS, "hit", "hit_other"]].assign(**sides, room=~had if more else had)
    groups: Any = marked.groupby(KEYS)
    by_feature = groups.sum()
    p_N = sign_test(*(by_feature[name].to_numpy(dtype=int) for name in ("for_it", "against")))
    return pd.DataFrame(
        {
            "pairs": groups.size(),
            "differ": by_feature["for_it"] + by_feature["against"],
            "room": by_feature["room"],
            "share": groups["hit"].mean(),
            "share_other": groups["hit_other"].mean(),
            "p": p_N,
            "q": adjusted(p_N),
        }
    )


def sign_test(for_N: np.ndarray, against_N: np.ndarray) -> np.ndarray:
    """Return, as (N,), one-sided p-values of the exact sign-flip test of paired yes and no.

    Under the null a pair in which only one side has a hit is as likely to have it on the other, so
    the pairs for it are binomial (McNemar's exact test). 1 where no pair differs.

    Args:
        for_N: of each feature, in how many pairs only the first side has a hit.
        against_N: in how many only the second has.
    """
    return binom.sf(for_N - 1, for_N + against_N, 0.5)


def chance_of(alpha: float, differing_N: np.ndarray) -> np.ndarray:
    """Return, as (N,), probability of p <= `alpha` under the null; less than `alpha`, as counts are
    whole.

    Args:
        alpha: the level.
        differing_N: in how many pairs the sides differ.
    """
    chances = [binom.sf(np.arange(-1, n), n, 0.5) for n in differing_N]
    return np.array([max(p_k[p_k <= alpha], default=0.0) for p_k in chances])


def adjusted(p_N: np.ndarray) -> np.ndarray:
    """Return, as (N,), Benjamini and Hochberg's q-values: those at most q are discoveries, of
    which a share of q is expected to be false.
    """
    return false_discovery_control(p_N) if len(p_N) else p_N
