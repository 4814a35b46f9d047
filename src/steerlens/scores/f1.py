"""Calibrated F1: how well a feature's largest activation tells a concept's texts from others.

After arXiv 2605.31183, supervised: of labelled texts, the largest activation of the feature over
the text's tokens; the threshold with the best F1 on the texts to learn from; the F1 that it has on
the other texts. Only features that reach an output score are looked at, because one that detects a
concept need not write it. Of several concepts (`topic=best`) a feature has the F1 of the one that
it tells best on the texts to learn from, so that it can be compared with features of others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.data.concept_sets.axbench import concept_names
from steerlens.data.concept_sets.embedded import TOPICS
from steerlens.data.concept_sets.labelled import (
    EMBEDDED,
    Split,
    labelled_split,
    labelled_splits,
    read_labels,
)
from steerlens.engine.run_context import no_progress
from steerlens.errors import SteerlensError, unknown
from steerlens.scores import RunContext, ScoreConfig, output

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

BEST = "best"

TIMED_TEXTS = (8, 4)
"""Of a topic, to learn from and to test on, that a plan times."""


@dataclass
class F1Config(ScoreConfig):
    """Settings of the calibrated F1."""

    method: str = "f1"
    labels: str | None = None
    """Labelled texts: a file of JSON lines `{"text": ..., "label": true}`, `embedded` (topics of
    the installed documentation), or a folder in AxBench's layout."""
    topic: str | None = None
    """embedded, folder: the name of the concept, or best: for each feature the one of all that it
    tells best on the texts to learn from."""
    min_output_score: float = 1e-3
    """Features with a lower output score have no F1 (null)."""
    n_train: int = 72
    """embedded: texts of the concept to learn from, and as many others."""
    n_test: int = 36
    """embedded: texts of the concept to test on, and as many others."""
    max_tokens: int = 128
    """Longer texts are cut."""
    prompt: str = "From my experience,"
    """Of the output score."""
    factor: float = 10.0
    """Of the output score."""
    top_k: int = 20
    """Number of logit-lens tokens that stand for the feature in the output score."""
    keep_error: bool = True
    """Keep the SAE's reconstruction error in the output score."""

    FILLS: ClassVar[Sequence[str]] = ("f1", "f1_threshold")

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if not self.labels:
            raise SteerlensError(
                "score f1 needs labelled texts: score.labels=FILE, a folder in AxBench's layout, "
                "or embedded."
            )
        for name in ("n_train", "n_test"):
            if getattr(self, name) < 1:
                raise self.refusal(name, "must be at least 1")
        if self.max_tokens < 2:
            raise self.refusal("max_tokens", "must be at least 2")
        path = Path(self.labels)
        if self.labels != EMBEDDED and not path.exists():
            raise SteerlensError(f"score.labels: there is no file or folder {self.labels}.")
        if path.is_file():
            read_labels(path)
            return
        if self.topic is None:
            raise SteerlensError(
                f"score.labels={self.labels} holds several concepts: name one with score.topic, or "
                "take score.topic=best, for each feature its best one."
            )
        names = [BEST, *TOPICS] if self.labels == EMBEDDED else [BEST, *concept_names(path)]
        if self.topic not in names:
            raise unknown(f"concept of score.labels={self.labels}", self.topic, names)

    def reduced(self) -> tuple[ScoreConfig, float]:
        """Return the settings with fewer texts of each topic; see `ScoreConfig.reduced`."""
        if self.labels != EMBEDDED:
            return self, 1.0
        n_train, n_test = min(self.n_train, TIMED_TEXTS[0]), min(self.n_test, TIMED_TEXTS[1])
        fewer = dataclasses.replace(self, n_train=n_train, n_test=n_test)
        return fewer, (self.n_train + self.n_test) / (n_train + n_test)

    def most_tokens(self) -> int:
        """Return how many tokens a layer reads of labelled texts at most; 0 of a folder's, whose
        number its texts alone tell.
        """
        if self.labels != EMBEDDED:
            path = Path(self.labels or "")
            return len(read_labels(path)) * self.max_tokens if path.is_file() else 0
        n_topics = len(TOPICS) if self.topic == BEST else 2  # the other's texts are negatives
        return n_topics * (self.n_train + self.n_test) * self.max_tokens

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ("seed",) if self.labels == EMBEDDED else ()

    def files(self) -> Sequence[Path]:
        """Return the files that the numbers depend on."""
        if not self.labels or self.labels == EMBEDDED:
            return ()
        path = Path(self.labels)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return [file for file in files if file.is_file()]

    def uses_lens(self) -> bool:
        """Return whether the numbers depend on the run's lens."""
        return True


Config = F1Config


def score(
    subject: Subject, features: np.ndarray, config: F1Config, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Score `features`, shape (n,).

    Returns:
        `f1` on the texts to test on, and the `f1_threshold` learnt from the others; both NaN below
        the output score, the threshold also where the feature fires on no text of the concept.
        With topic=best also the concept that it is of, `f1_topic`.

    Raises:
        SteerlensError: for labels that can't be read, NaN activations, and as the output score.
    """
    features = np.asarray(features, dtype=np.int64)
    silent = dataclasses.replace(ctx, progress=no_progress)
    of_output = output.OutputScoreConfig(
        prompt=config.prompt, factor=config.factor, top_k=config.top_k,
        keep_error=config.keep_error, null_directions=0,
    )  # fmt: skip
    s_out_F = np.asarray(output.score(subject, features, of_output, silent)["output_score"])
    steers_F = s_out_F >= config.min_output_score
    columns = {name: np.full(len(features), np.nan) for name in ("f1", "f1_threshold")}
    topic_F = np.full(len(features), None, dtype=object)
    if steers_F.any():
        of_texts = config.labels or "", config.n_train, config.n_test, ctx.seed
        splits = (
            labelled_splits(*of_texts)
            if config.topic == BEST
            else [("", labelled_split(of_texts[0], config.topic, *of_texts[1:]))]
        )
        best = _of_best_concept(subject, splits, features[steers_F], config, ctx)
        columns["f1"][steers_F], columns["f1_threshold"][steers_F], topic_F[steers_F] = best
    ctx.progress(len(features))
    return {**columns, "f1_topic": topic_F} if config.topic == BEST else columns


def _of_best_concept(
    subject: Subject,
    splits: Sequence[tuple[str, Split]],
    features: np.ndarray,
    config: F1Config,
    ctx: RunContext,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return F1, threshold and name (F,) of the concept with the best F1 on its texts to learn
    from, of equally good ones the first; 0, NaN and None where the feature fires on none.
    """
    from steerlens.engine.activations.pooled import largest_activations, text_pieces

    # A text of one concept is a negative of others: each is read once.
    texts = dict.fromkeys(text for _, split in splits for text in [*split.train, *split.test])
    row_of = {text: row for row, text in enumerate(texts)}
    pieces = text_pieces(subject, [*texts], config.max_tokens)
    first = [min(subject.n_uncounted, len(piece) - 1) for piece in pieces]
    acts_NF = largest_activations(subject, pieces, first, features, ctx.memory_budget)
    f1_F, learnt_F = np.zeros(len(features)), np.zeros(len(features))
    threshold_F = np.full(len(features), np.nan)
    topic_F = np.full(len(features), None, dtype=object)
    for name, split in splits:
        train_NF, test_NF = (
            acts_NF[[row_of[text] for text in side]] for side in (split.train, split.test)
        )
        thresholds = best_thresholds(train_NF, split.is_positive_train)
        f1_of_train = f1_scores(train_NF, split.is_positive_train, thresholds)
        better_F = f1_of_train > learnt_F
        learnt_F[better_F], topic_F[better_F] = f1_of_train[better_F], name
        threshold_F[better_F] = thresholds[better_F]
        f1_F[better_F] = f1_scores(test_NF, split.is_positive_test, thresholds)[better_F]
    return f1_F, threshold_F, topic_F


def best_thresholds(acts_NF: np.ndarray, is_positive_N: np.ndarray) -> np.ndarray:
    """Return, as (F,), the activation at least as large as which the texts have the best F1.

    Of equally good ones the largest; NaN where no positive text has an activation above 0.
    """
    order_NF = np.argsort(-acts_NF, axis=0, kind="stable")
    sorted_NF = np.take_along_axis(acts_NF, order_NF, axis=0).astype(float)
    true_NF = np.cumsum(is_positive_N[order_NF], axis=0)
    taken_N1 = np.arange(1, len(acts_NF) + 1)[:, None]
    f1_NF = 2 * true_NF / (taken_N1 + is_positive_N.sum())
    # All texts with the same activation are taken together, and none that doesn't fire.
    is_last_NF = np.ones_like(f1_NF, dtype=bool)
    is_last_NF[:-1] = sorted_NF[:-1] > sorted_NF[1:]
    f1_NF = np.where(is_last_NF & (sorted_NF > 0), f1_NF, 0)
    best_1F = f1_NF.argmax(axis=0)[None]
    threshold_F = np.take_along_axis(sorted_NF, best_1F, axis=0)[0]
    return np.where(f1_NF.max(axis=0) > 0, threshold_F, np.nan)


def f1_scores(
    acts_NF: np.ndarray, is_positive_N: np.ndarray, threshold_F: np.ndarray
) -> np.ndarray:
    """Return, as (F,), the F1 of `acts_NF >= threshold_F` as a detector of positives; 0 without a
    threshold.
    """
    detected_NF = acts_NF >= threshold_F  # never of NaN
    true_F = (detected_NF & is_positive_N[:, None]).sum(axis=0)
    return 2 * true_F / (detected_NF.sum(axis=0) + is_positive_N.sum())
