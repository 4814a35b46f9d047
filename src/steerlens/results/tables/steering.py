"""Tables of texts that were steered with features, and of words that are steered toward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlens.results.table import Column, Table
from steerlens.results.tables.columns import (
    DEGENERACY,
    FACTOR,
    KL,
    LAYER,
    MAKING,
    PERPLEXITY,
    PROMPT,
    REPETITION,
    SAMPLE,
    SIDE_EFFECT_RATIO,
    SIDE_EFFECTS,
    SUBJECT,
    TEXT,
)
from steerlens.results.tables.features import FEATURES, SAES

if TYPE_CHECKING:
    import pandas as pd

_STEERED = {
    "layer": LAYER,
    "feature": Column(
        "int64", "The feature that was steered with; of several together the best one."
    ),
    "control": Column(
        "string",
        "What took the feature's place, `random_direction` or `random_feature`; null for the "
        "feature itself.",
    ),
    "together": Column(
        "string",
        "The other features that were steered at the same time, all with an equal share of the "
        "factor, as `57+208`; null for one feature alone.",
    ),
    "concept": Column("string", "What was steered toward, as in `concept=`; null for nothing."),
}
"""What is steered with, and toward what."""

_SUCCESS = (
    "How many tokens of the text, tokenised again, are among the {} first logit-lens tokens of "
    "`feature`, whatever the control (success@{}, Eq. 7)."
)

GENERATIONS = Table(
    file="generations.parquet",
    about="One row per text of a run that steers with features. Texts at factor 0 are there for "
    "every feature.",
    keys=(
        *(*SUBJECT, "layer", "feature", "control", "together", "concept"),
        *("factor", "prompt", "sample"),
    ),
    nullable=("control", "together", "concept"),
    columns={
        **SUBJECT,
        **_STEERED,
        "factor": FACTOR,
        "prompt": PROMPT,
        "sample": SAMPLE,
        **TEXT,
        **{f"success_{k}": Column("int64", _SUCCESS.format(k, k)) for k in (1, 5, 20)},
        **{
            f"success_{k}_ids": Column(
                "int64", f"`success_{k}` of the tokens as they were generated."
            )
            for k in (1, 5, 20)
        },
        "concept_success": Column(
            "int64", "How many tokens of the text, tokenised again, stand for `concept`."
        ),
        "perplexity": PERPLEXITY,
        "kl": KL,
        "rating": Column(
            "double",
            "With choice.rule=judge the harmonic mean of the judge's ratings, 0 to 2; null where "
            "one is missing. The ratings stand in columns as those of `ratings.parquet`.",
        ),
        "drift": Column(
            "int64",
            "How many features fire in the text that don't in the unsteered one of the same prompt "
            "and sample, without the steered ones, on tokens that aren't the feature's own; null "
            "without `metrics.drift.enabled=true`.",
        ),
        "degeneracy": DEGENERACY,
        **REPETITION,
        **MAKING,
    },
)
"""One row per text of a run that steers with features."""

_AT_BEST = "Mean {} of the texts at `best_factor`."

_UNSTEERED = "Mean {} of the feature's texts at factor 0."

STEERING = Table(
    file="steering.parquet",
    about="One row per feature (and control, and features together): means over its texts at its "
    "best factor, and its scores. Means are null where no factor may be chosen.",
    keys=(*SUBJECT, "layer", "feature", "control", "together", "concept"),
    nullable=("control", "together", "concept"),
    columns={
        **SUBJECT,
        **_STEERED,
        "best_factor": Column(
            "double", "The factor that `choice` chooses; null where none may be chosen."
        ),
        "safe_factor_low": Column(
            "double",
            "The lowest of the consecutive tried factors around `best_factor` that the rule of "
            "`choice` allows; null where it allows none.",
        ),
        "safe_factor_high": Column("double", "The highest of them."),
        "undecided": Column(
            "bool",
            "Whether no factor that may be chosen has any success, so that `best_factor` is only "
            "the smallest.",
        ),
        **{f"success_{k}": Column("double", _AT_BEST.format(f"success@{k}")) for k in (1, 5, 20)},
        "concept_success": Column("double", _AT_BEST.format("`concept_success`")),
        "perplexity": Column("double", _AT_BEST.format("perplexity")),
        "degeneracy": Column("double", _AT_BEST.format("degeneracy")),
        "drift": Column("double", _AT_BEST.format("`drift`")),
        "kl": Column("double", _AT_BEST.format("`kl`")),
        "relative_dose": Column("double", _AT_BEST.format("`relative_dose`")),
        "rating": Column("double", _AT_BEST.format("`rating`")),
        **SIDE_EFFECTS,
        "texts": Column("int64", "How many texts these means are of."),
        "success_20_unsteered": Column("double", _UNSTEERED.format("success@20")),
        "concept_success_unsteered": Column("double", _UNSTEERED.format("`concept_success`")),
        "perplexity_unsteered": Column("double", _UNSTEERED.format("perplexity")),
        **{name: FEATURES.columns[name] for name in FEATURES.columns if name not in FEATURES.keys},
    },
)
"""One row per feature (and control, and features together): means at its best factor."""


CAPABILITY = Table(
    file="capability.parquet",
    about="One row per feature (and control, and features together), factor and task of "
    "`evaluate.tasks`: how the model answers under the edit. Rows at factor 0 are there for every "
    "feature.",
    keys=(*SUBJECT, "layer", "feature", "control", "together", "task", "factor"),
    nullable=("control", "together"),
    columns={
        **SUBJECT,
        **{name: column for name, column in _STEERED.items() if name != "concept"},
        "task": Column("string", "The task's name in lm-evaluation-harness."),
        "factor": FACTOR,
        "metric": Column(
            "string", "What an item counts: the task's first metric, `acc` for right or wrong."
        ),
        "items": Column("int64", "How many items the task has here."),
        "accuracy": Column("double", "Mean of `metric` over the items."),
        "accuracy_low": Column(
            "double", "Lower end of its 95 % interval over items; null for fewer than 8."
        ),
        "accuracy_high": Column("double", "Upper end of it."),
        "accuracy_unsteered": Column("double", "The accuracy of the same items without the edit."),
        "changed": Column("int64", "How many answers aren't the unsteered ones."),
        "worse": Column("int64", "How many of these count for less than the unsteered ones."),
        "side_effect_ratio": SIDE_EFFECT_RATIO,
        "item_scores": Column("list<double>", "`metric` of every item, in the task's order."),
        "answers": Column(
            "list<string>",
            "The answer to every item: the number of the most probable choice, from 0, or what "
            "the model has written.",
        ),
    },
)
"""One row per feature, factor and task."""


def features_alone(rows: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of features themselves: of no control, and of no features together.

    Args:
        rows: of `generations.parquet` or `steering.parquet`.
    """
    return rows.loc[rows["control"].isna() & rows["together"].isna()]


_TOKENS = Column("list<string>", "The tokens that stand for the word; null where none does.")

_CANDIDATES = Column(
    "int64", "How many features have one of these among the first tokens that they promote."
)

_BEST_FACTOR = Column("double", "The steering factor that the numbers beside it are of.")

COVERAGE = Table(
    file="coverage.parquet",
    about="One row per layer and word of `coverage.words`: the feature with the highest output "
    "score toward the word, and the share of its steered texts in which the word stands.",
    keys=(*SAES.keys, "word"),
    columns={
        **SUBJECT,
        "layer": LAYER,
        "word": Column("string", "The word."),
        "tokens": _TOKENS,
        "candidates": _CANDIDATES,
        "feature": Column(
            "int64", "The candidate with the highest output score toward the word's tokens."
        ),
        "concept_score": Column("double", "That score."),
        "best_factor": Column(
            "double",
            "The factor at which most texts show the word, chosen on every second prompt; null "
            "where none is within the perplexity's budget.",
        ),
        "word_share": Column(
            "double",
            "Share of the steered texts, of the other prompts at `best_factor`, in which the word "
            "stands.",
        ),
        "word_share_unsteered": Column("double", "The same without steering."),
        "perplexity": Column("double", "Mean perplexity of these steered texts."),
        "perplexity_unsteered": Column("double", "The same without steering."),
        "texts": Column("int64", "How many steered texts these numbers are of."),
        "reason": Column("string", "Why a column is null; null where none is."),
    },
)
"""One row per layer and word of `coverage.words`."""

WORDS = Table(
    file="words.parquet",
    about="One row per concept that a run looked for a steering feature for, in the order in which "
    "it did.",
    keys=("word",),
    columns={
        "word": Column("string", "The concept."),
        "tokens": _TOKENS,
        "token_ids": Column("list<int64>", "Their ids in the model's vocabulary."),
        "candidates": _CANDIDATES,
        "layer": Column("int64", "The layer of `feature`."),
        "feature": Column(
            "int64",
            "The feature that writes most of the concept's tokens; before any text, that with the "
            "highest output score toward it.",
        ),
        "concept_score": Column("double", "Its output score toward the concept."),
        "best_factor": _BEST_FACTOR,
        "concept_success": Column(
            "double", "How many of the concept's tokens a text has at `best_factor`, on average."
        ),
        "concept_success_unsteered": Column("double", "The same without steering."),
        "texts": Column("int64", "How many steered texts these numbers are of."),
        "reason": Column(
            "string", "Why nothing steers toward the concept; null where a feature does."
        ),
    },
)
"""One row per concept that a run looked for a steering feature for."""
