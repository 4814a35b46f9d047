"""PMI: how close generated success tokens are to the feature's first logit-lens token (Figure 8).

    PMI(a, b) = log2( p(a, b) / (p(a) p(b)) )

with p(a) the share of a corpus' windows in which the word a is, p(a, b) that in which both are. A
feature that steers toward a concept generates words that go with its first token in ordinary text,
too; one that breaks the model doesn't. The paper says neither logarithm, nor corpus window, nor
minimum count; these are settings, and bits are ours.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlens.analysis.resampling import FEWEST
from steerlens.analysis.roles import ROLES, success_tokens, with_roles
from steerlens.config.schema import PmiConfig
from steerlens.results import FEATURES, GENERATIONS, features_alone
from steerlens.results.pmi import Pmi

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2_000

_WORD = re.compile(r"\w+")

Pair = tuple[str, str]
"""A success token and the feature's first logit-lens token, as words."""


@dataclass(frozen=True)
class Counts:
    """In how many windows words are, alone and together."""

    windows: int = 0
    words: Counter[str] = field(default_factory=Counter)
    pairs: Counter[Pair] = field(default_factory=Counter)


def pmi(
    steering: pd.DataFrame,
    generations: pd.DataFrame,
    texts: Iterable[str],
    config: PmiConfig | None = None,
) -> Pmi:
    """Return the PMI of every success token that a feature generated at its best factor, from
    `texts`.

    Words are lower-cased and without spaces; a token that isn't one word (punctuation, part of a
    character) has no pair, and neither has a word with itself: that only tells how rare it is.
    Features without both scores have no role and are left out.
    """
    config = config or PmiConfig()
    generated = generated_pairs(steering, generations)
    words = generated.loc[generated["token"].notna() & generated["top_token"].notna()]
    different = words.loc[words["token"] != words["top_token"]]
    pairs = list(zip(different["token"], different["top_token"], strict=True))
    counts = count(texts, set(pairs), config.window)
    counted = different.assign(
        token_count=[counts.words[word] for word, _ in pairs],
        top_count=[counts.words[top] for _, top in pairs],
        together=[counts.pairs[pair] for pair in pairs],
    )
    common = counted.loc[counted[["token_count", "top_count"]].min(axis=1) >= config.min_count]
    enough = common.loc[common["together"] >= config.min_together].reset_index(drop=True)
    together, token_count, top_count = (
        enough[name].to_numpy(dtype=float) for name in ("together", "token_count", "top_count")
    )
    return Pmi(
        pairs=enough.assign(pmi=np.log2(counts.windows * together / (token_count * top_count))),
        windows=counts.windows,
        dropped={
            "no word": len(generated) - len(words),
            "same word": len(words) - len(different),
            "rare word": len(different) - len(common),
            "rarely together": len(common) - len(enough),
        },
    )


def generated_pairs(steering: pd.DataFrame, generations: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (feature, success token) at the feature's best factor, and `times`
    generated.

    `token` and `top_token` are words, null where a token isn't one; tokens of the same word are
    one row.
    """
    import pandas as pd

    keys = list(FEATURES.keys)
    columns = [*keys, "role", "best_factor", "logit_lens_tokens", "logit_lens_token_ids"]
    features = with_roles(steering)[columns]
    of_features = features_alone(generations)[[*GENERATIONS.keys, "token_ids"]]
    texts = of_features.merge(features, on=keys)
    texts = texts.loc[(texts["factor"] == texts["best_factor"]).fillna(False)]
    times: Counter[tuple[Any, ...]] = Counter()
    for text in texts.to_dict("records"):
        lens = text["logit_lens_tokens"]
        feature = tuple(text[key] for key in (*keys, "role"))
        for token in success_tokens(text["token_ids"], text["logit_lens_token_ids"], lens):
            times[(*feature, _word(token), _word(lens[0]))] += 1
    rows = [(*row, n) for row, n in times.items()]
    return pd.DataFrame(rows, columns=[*keys, "role", "token", "top_token", "times"])


def count(texts: Iterable[str], pairs: Collection[Pair], window: int) -> Counts:
    """Return in how many windows of `texts` the words of `pairs` are, in one pass.

    A text is cut into windows of `window` words, of which the last may be shorter. Without pairs
    nothing is read.
    """
    if not pairs:
        return Counts()
    partners: defaultdict[str, set[str]] = defaultdict(set)
    for word, top in pairs:
        partners[top].add(word)
    needed = {word for pair in pairs for word in pair}
    words: Counter[str] = Counter()
    together: Counter[Pair] = Counter()
    windows = 0
    for text in texts:
        words_here = _WORD.findall(text.lower())
        for start in range(0, len(words_here), window):
            present = needed.intersection(words_here[start : start + window])
            words.update(present)
            for top in present & partners.keys():
                together.update((word, top) for word in partners[top] & present)
            windows += 1
    return Counts(windows, words, together)


def by_role(pairs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return, for every role: how many pairs and features, quartiles and mean of PMI.

    `mean_interval` is the mean's 95 % interval: bootstrap over features, because the pairs of one
    feature share its first token. It is None for fewer than `FEWEST` features.
    """
    by_name = {str(role): rows for role, rows in pairs.groupby("role")}
    return {role: _statistics(by_name[role]) for role in ROLES if role in by_name}


def _statistics(pairs: pd.DataFrame) -> dict[str, Any]:
    features = [rows.to_numpy(dtype=float) for _, rows in pairs.groupby([*FEATURES.keys])["pmi"]]
    sums, sizes = np.array([(values.sum(), len(values)) for values in features]).T
    q25, median, q75 = np.quantile(pairs["pmi"].to_numpy(dtype=float), [0.25, 0.5, 0.75]).tolist()
    interval = None
    if len(sizes) >= FEWEST:
        drawn = np.random.default_rng(0).integers(len(sizes), size=(RESAMPLES, len(sizes)))
        means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
        interval = np.quantile(means, [0.025, 0.975]).tolist()
    return {
        "pairs": len(pairs),
        "features": len(features),
        "q25": q25,
        "median": median,
        "q75": q75,
        "mean": float(sums.sum() / sizes.sum()),
        "mean_interval": interval,
    }


def _word(token: str) -> str | None:
    word = token.strip().lower()
    return word if _WORD.fullmatch(word) else None
