"""The words of a concept, learned from texts with it and texts without it.

Words are ranked by the log-odds ratio with a Dirichlet prior of Monroe, Colaresi and Quinn (2008,
"Fightin' Words", Eq. 16 and 22), in standard deviations: z. The prior has the frequencies of all
training texts and a tenth of their weight. Words that many texts without the concept have
are left out, and to those texts come some with other concepts: concept sets are often written by
another model than their negatives, and its favourite words would pass for the concept.

How large a share of a text they must be is decided on training texts, each by a vocabulary learned
without it (five folds): a vocabulary finds its own texts too easily.

Dimension letters: N texts, W words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    import numpy as np

TOKEN = re.compile(r"\w+|[^\w\s]")
PRIOR = 0.1
"""Share of all words that the prior weighs as much as."""
LEAST_Z = 1.96
LEAST_TEXTS = 0.05
"""Share of the texts with the concept that a word must be in; and in two at least."""
COMMON = 0.25
"""Share of the texts without the concept; a word in more of them isn't distinctive."""
MOST_WORDS = 100
FOLDS = 5
OTHERS = 72
"""Texts with other concepts, at most, that each concept is told apart from."""


class Present(NamedTuple):
    """Shares of a text's words that are the concept's."""

    present: float
    """From here on the concept is there: where the share of texts with the concept that reach it
    exceeds that of texts without by most (Youden's J)."""
    shaped: float
    """From here on it shapes the text: the median of the texts with the concept that reach
    `present`."""
    balanced_accuracy: float
    """Of `present`, on texts that the vocabulary wasn't learned from: 0.5 is chance."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a concept, the most distinctive first."""

    words: tuple[str, ...]
    limits: Present | None
    """None where no share tells texts with the concept from others."""


def words_of(text: str) -> list[str]:
    """Return the words and signs of a text, case folded."""
    return TOKEN.findall(text.casefold())


def share(text: str, vocabulary: Vocabulary) -> float:
    """Return which part of a text's words is in the vocabulary; 0 of an empty text."""
    words, vocabulary_words = words_of(text), set(vocabulary.words)
    return sum(word in vocabulary_words for word in words) / len(words) if words else 0.0


def fit_vocabularies(
    training: Mapping[str, tuple[Sequence[str], Sequence[str]]],
) -> dict[str, Vocabulary]:
    """Return the vocabulary of every concept, from its texts with and without it, and some texts of
    the other concepts. Depends on the whole set of concepts, not on its order.

    Raises:
        SteerlensError: fewer than two texts with or without a concept.
    """
    positive = {concept: training[concept][0] for concept in sorted(training)}
    by_concept = {}
    for concept, (positives, without) in training.items():
        negatives = [text for name, texts in positive.items() if name != concept for text in texts]
        step = max(1, -(-len(negatives) // OTHERS))
        by_concept[concept] = fit_vocabulary(positives, [*without, *negatives[::step]])
    return by_concept


def fit_vocabulary(positive: Sequence[str], negative: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of a concept from texts with it and texts without it. Draws nothing.

    Raises:
        SteerlensError: fewer than two texts of either.
    """
    import numpy as np

    refuse_too_few(len(positive), len(negative))
    counted = [Counter(words_of(text)) for text in [*positive, *negative]]
    words = sorted(set().union(*counted))
    column = {word: index for index, word in enumerate(words)}
    counts_NW = np.zeros((len(counted), len(words)))
    for row, counter in enumerate(counted):
        for word, n in counter.items():
            counts_NW[row, column[word]] = n
    with_N = np.arange(len(counted)) < len(positive)
    chosen = _chosen(counts_NW, with_N)
    limits = _limits(_left_out_shares(counts_NW, with_N), with_N) if len(chosen) else None
    return Vocabulary(tuple(words[index] for index in chosen), limits)


def refuse_too_few(n_with: int, n_without: int, concept: str | None = None) -> None:
    """Refuse fewer than two texts with or without a concept, which may be named."""
    if min(n_with, n_without) < 2:
        of = f" of {concept!r}" if concept else ""
        raise SteerlensError(
            "judge=lexical learns a concept's words from at least two texts with it and two "
            f"without; there are {n_with} and {n_without}{of}."
        )


def z_scores(with_W: np.ndarray, without_W: np.ndarray) -> np.ndarray:
    """Return how much more often each word is in the first counts than in the second, in
    standard deviations: (W,).
    """
    import numpy as np

    both_W = with_W + without_W
    # A word that these texts don't have gets no evidence either way.
    prior_W = PRIOR * np.maximum(both_W, 1e-9)
    log_odds = []
    for counts_W in (with_W, without_W):
        own_W = counts_W + prior_W
        log_odds.append(np.log(own_W) - np.log(own_W.sum() - own_W))
    variance_W = 1 / (with_W + prior_W) + 1 / (without_W + prior_W)
    return (log_odds[0] - log_odds[1]) / np.sqrt(variance_W)


def _chosen(counts_NW: np.ndarray, with_N: np.ndarray) -> np.ndarray:
    """Return indices of the vocabulary's words, the most distinctive first."""
    import numpy as np

    z_W = z_scores(counts_NW[with_N].sum(axis=0), counts_NW[~with_N].sum(axis=0))
    texts_W = (counts_NW[with_N] > 0).sum(axis=0)
    z_W[texts_W < max(2, LEAST_TEXTS * with_N.sum())] = -np.inf
    z_W[(counts_NW[~with_N] > 0).mean(axis=0) > COMMON] = -np.inf
    order = np.argsort(-z_W, kind="stable")[:MOST_WORDS]
    return order[z_W[order] >= LEAST_Z]


def _left_out_shares(counts_NW: np.ndarray, with_N: np.ndarray) -> np.ndarray:
    """Return each text's share of a vocabulary that was learned without it: (N,)."""
    import numpy as np

    fold_N = np.empty(len(with_N), dtype=int)
    for group in (with_N, ~with_N):
        fold_N[group] = np.arange(group.sum()) % min(FOLDS, group.sum())
    share_N = np.zeros(len(with_N))
    for fold in range(fold_N.max() + 1):
        out = fold_N == fold
        chosen = _chosen(counts_NW[~out], with_N[~out])
        n_words_N = np.maximum(counts_NW[out].sum(axis=1), 1)
        share_N[out] = counts_NW[out][:, chosen].sum(axis=1) / n_words_N
    return share_N


def _limits(share_N: np.ndarray, with_N: np.ndarray) -> Present | None:
    """Return the limits that the left-out texts ask for; None where none is better than chance."""
    import numpy as np

    candidates = np.unique(share_N[share_N > 0])
    if not len(candidates):
        return None
    hit, false = ((share_N[group, None] >= candidates).mean(axis=0) for group in (with_N, ~with_N))
    best = int(np.argmax(hit - false))
    if hit[best] <= false[best]:
        return None
    present = float(candidates[best])
    shaped = float(np.median(share_N[with_N & (share_N >= present)]))
    return Present(present, shaped, float(1 + hit[best] - false[best]) / 2)
