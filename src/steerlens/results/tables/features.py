"""Tables of SAEs and their features: scores, and what a feature's card shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from steerlens.results.table import Column, Table
from steerlens.results.tables.columns import LAYER, SUBJECT

if TYPE_CHECKING:
    import pandas as pd

FEATURES = Table(
    file="features.parquet",
    about="One row per feature: its scores. What no method of the run has filled is null.",
    keys=(*SUBJECT, "layer", "feature"),
    columns={
        **SUBJECT,
        "layer": LAYER,
        "feature": Column("int64", "The feature's index in its SAE."),
        "output_score": Column(
            "double",
            "Output score S_out (Eq. 9): (1 - rank / vocabulary) x probability of the best-ranked "
            "of the feature's logit-lens tokens when the feature is amplified after a neutral "
            "prompt; 0 to 1.",
        ),
        "output_score_delta": Column(
            "double", "`output_score` minus the same number without steering (Eq. 10)."
        ),
        "output_score_p": Column(
            "double",
            "Share of the layer's random directions (`null.parquet`) whose output score is at "
            "least as high, the feature itself counted among them; not corrected for the number of "
            "features.",
        ),
        "output_rank": Column(
            "int64", "Rank of `output_token` in the steered next-token distribution, 0 the first."
        ),
        "output_probability": Column(
            "double", "Probability of `output_token` in the steered next-token distribution."
        ),
        "output_token": Column(
            "string", "The best-ranked of the feature's logit-lens tokens when it is amplified."
        ),
        "input_score": Column(
            "double",
            "Input score S_in (Eq. 8, counted as published): of the texts where the feature fires, "
            "the share whose maximally activated token is among its logit-lens tokens; null where "
            "fewer than `score.min_examples` fire it.",
        ),
        "input_score_unique": Column(
            "double", "The same, each different token counted once (as Eq. 8 reads)."
        ),
        "input_examples": Column("int64", "How many texts the input score was counted in."),
        "logit_lens_tokens": Column(
            "list<string>",
            "The `logit_lens_k` tokens that the feature's direction promotes most, best first.",
        ),
        "promoted_tokens": Column(
            "list<string>",
            "The tokens that the feature promotes most by the run's lens, where that isn't the "
            "logit lens.",
        ),
        "logit_lens_token_ids": Column(
            "list<int64>", "The ids of `logit_lens_tokens` in the model's vocabulary."
        ),
        "promoted_token_ids": Column("list<int64>", "Those of `promoted_tokens`."),
        "input_top_examples": Column(
            "list<string>",
            "A few of the texts that fire the feature hardest, the token in «guillemets».",
        ),
        "token_confidence_delta": Column(
            "double",
            "Delta Token Confidence: how much amplifying the feature changes the mean negative "
            "log-probability of the k likeliest tokens, in nats.",
        ),
        "mean_logit": Column(
            "double",
            "Mean logit of the feature's logit-lens tokens in its own logit lens, before a soft "
            "cap or scale.",
        ),
        "lens_precision": Column(
            "double",
            "Share of the tokens that the feature promotes by the run's lens that are among as "
            "many whose probability rises most, after prompts that no lens has seen, when the "
            "feature is amplified.",
        ),
        "gradient": Column(
            "double",
            "Mean over the positions where the feature fires, in its examples, of activation times "
            "gradient of the log-probability (nats) of the model's greedy next token; null where "
            "it fires in fewer than `score.min_examples` of them.",
        ),
        "outcome_correlation": Column(
            "double",
            "Correlation, over texts, of the feature's largest activation on the generated tokens "
            "with the outcome of `score.outcome`; null over fewer than 30 texts, or where one of "
            "both is constant.",
        ),
        "outcome_texts": Column("int64", "How many texts `outcome_correlation` is over."),
        "effect_stability": Column(
            "double",
            "Mean cosine between the changes of the next-token logits when the feature is "
            "amplified after two different prompts; null where it changes none.",
        ),
        "collateral_spread": Column(
            "double",
            "How many other features of the SAE change at the steered position, the mean over "
            "prompts.",
        ),
        "collateral_spread_later": Column(
            "double",
            "How many features change of each of the run's SAEs of later layers, the mean over "
            "prompts and SAEs; null where there are none.",
        ),
        "f1": Column(
            "double",
            "F1 of the feature as a detector of a concept's texts, by its largest activation in "
            "each, on texts that its threshold wasn't chosen on; null below "
            "`score.min_output_score`.",
        ),
        "f1_threshold": Column(
            "double",
            "The activation from which on a text counts as the concept's; null where the feature "
            "fires on none of them.",
        ),
        "f1_topic": Column(
            "string",
            "With `score.topic=best` the concept that `f1` is of: the one that the feature tells "
            "best on the texts that its threshold was chosen on.",
        ),
        "max_activation": Column(
            "double", "Largest activation over the corpus, in the SAE's own units."
        ),
        "mean_activation": Column(
            "double", "Mean activation over the tokens where the feature fires; null if on none."
        ),
        "activation_frequency": Column(
            "double", "Share of the corpus's tokens on which the feature fires."
        ),
        "random_score": Column("double", "Uniform in [0, 1), from the run's seed: a control."),
        "concept_score": Column(
            "double",
            "The output score toward the run's concept: its tokens in the place of the feature's "
            "own.",
        ),
        "concept_token": Column(
            "string", "The concept's token that is likeliest when the feature is amplified."
        ),
        "output_score_mean": Column(
            "double", "Mean output score over the prompts of `prompt_robustness`."
        ),
        "output_score_std": Column(
            "double", "Standard deviation (of the population) of these scores."
        ),
        "output_score_by_prompt": Column(
            "list<double>", "These scores, in the order of the prompts."
        ),
        "label": Column("string", "What the file of `labels=` calls the feature."),
        "neuronpedia_url": Column("string", "The feature's page on Neuronpedia, from that file."),
    },
)
"""One row per feature: its scores."""


def promoted_ids(features: pd.DataFrame) -> pd.Series:
    """Return the ids of the tokens that each feature promotes, best first, by its run's lens: rows
    of `FEATURES`, whose logit-lens tokens they are where the run has no other.
    """
    has_other_lens = any(features["promoted_token_ids"].notna().tolist())
    ids: Any = features["promoted_token_ids" if has_other_lens else "logit_lens_token_ids"]
    return ids


class Score(NamedTuple):
    """What is made of a number that a method gives features."""

    title: str
    """What a page calls it."""
    meaning: str
    """What it is, in a line."""
    ranks: bool = True
    """Whether the features that have most of it are the run's best ones."""
    selects: bool = True
    """Whether it is tried as a guide to steering."""


SCORES = {
    "concept_score": Score("toward", "output score toward the concept's tokens"),
    "output_score": Score(
        "S_out", "output score: rank and probability of its own tokens when raised"
    ),
    "output_score_delta": Score(
        "S_out gain", "output score less that without steering", ranks=False
    ),
    "output_score_p": Score(
        "p", "share of the layer's random directions that score as high", ranks=False, selects=False
    ),
    "output_score_mean": Score("S_out mean", "mean output score over several prompts"),
    "input_score": Score("S_in", "share of its texts in which it peaks on a token of its own"),
    "token_confidence_delta": Score(
        "confidence", "change of the mean log-probability of likely tokens"
    ),
    "mean_logit": Score("mean logit", "mean logit of its own tokens in its logit lens"),
    "lens_precision": Score("lens precision", "share of its promoted tokens that do rise"),
    "gradient": Score("gradient", "activation times gradient of the model's own next token"),
    "outcome_correlation": Score(
        "outcome", "correlation of its activation with what texts come to"
    ),
    "f1": Score("F1", "F1 as a detector of a concept's texts"),
    "effect_stability": Score("stability", "cosine of its effects on the logits under two prompts"),
    "collateral_spread": Score(
        "spread", "other features of the SAE that change when it is raised", ranks=False
    ),
    "collateral_spread_later": Score(
        "later spread", "features of each later SAE that change", ranks=False
    ),
    "activation_frequency": Score(
        "frequency", "share of the corpus's tokens on which it fires", ranks=False
    ),
    "max_activation": Score("max", "largest activation over the corpus"),
    "mean_activation": Score("mean", "mean activation where it fires", ranks=False, selects=False),
    "random_score": Score("random", "drawn at random: a control"),
}
"""The numbers of `FEATURES` that are scores, the best guide to steering first. Those of other
people's methods come after them."""

SAES = Table(
    file="saes.parquet",
    about="One row per SAE: what it is, and with `quality.n_tokens` how well it reconstructs that "
    "many tokens of the corpus.",
    keys=(*SUBJECT, "layer"),
    columns={
        **SUBJECT,
        "layer": LAYER,
        "n_layers": Column("int64", "How many layers the model has."),
        "architecture": Column("string", "The kind of SAE, in SAELens' words."),
        "d_in": Column("int64", "Width of the activations that it reads."),
        "d_sae": Column("int64", "How many features it has."),
        "parameters": Column("int64", "How many numbers it is made of."),
        "tokens": Column("int64", "How many tokens it was measured on; null where it wasn't."),
        "explained_variance": Column(
            "double",
            "1 - squared error of the reconstruction / variance of the activations; null for a "
            "transcoder.",
        ),
        "l0": Column("double", "Mean number of features that fire on a token."),
        "dead_share": Column("double", "Share of the features that fire on none of the tokens."),
    },
)
"""One row per SAE."""

NULL_SCORES = Table(
    file="null.parquet",
    about="One row per layer and random direction with the norm of a decoder row: its output "
    "score, with which those of the layer's features are compared.",
    keys=(*SAES.keys, "direction"),
    columns={
        **SUBJECT,
        "layer": LAYER,
        "direction": Column("int64", "Which of the layer's random directions, from 0."),
        "output_score": Column("double", "Its output score toward its own logit-lens tokens."),
    },
)
"""One row per layer and random direction."""

CARDS = Table(
    file="cards.parquet",
    about="One row per feature whose card `report.html` has: what is known of it beside its "
    "scores.",
    keys=FEATURES.keys,
    columns={
        **SUBJECT,
        "layer": LAYER,
        "feature": FEATURES.columns["feature"],
        "logit_lens_logits": Column(
            "list<double>", "The logits of the tokens in `logit_lens_tokens`, in their order."
        ),
        "suppressed_tokens": Column(
            "list<string>", "The tokens that the feature's direction suppresses most, worst first."
        ),
        "suppressed_logits": Column("list<double>", "Their logits."),
        "activation_frequency": FEATURES.columns["activation_frequency"],
        "activation_histogram": Column(
            "list<int64>",
            "How many activations > 0 fall into each of equal bins from 0 to "
            "`activation_histogram_range`; null where no texts were at hand.",
        ),
        "activation_histogram_range": Column(
            "double", "The smallest power of two above every activation."
        ),
    },
)
"""One row per feature whose card the page has."""

EXAMPLES = Table(
    file="examples.parquet",
    about="One row per text that a feature fires on, of the features whose cards `report.html` "
    "has: a few tokens around the peak.",
    keys=(*FEATURES.keys, "example"),
    columns={
        **SUBJECT,
        "layer": LAYER,
        "feature": FEATURES.columns["feature"],
        "example": Column("int64", "Which of the feature's texts, 0 that with the highest peak."),
        "tokens": Column("list<string>", "The text's tokens around the peak."),
        "activations": Column("list<double>", "The feature's activation on each of them."),
    },
)
"""One row per text that a feature fires on."""

NEIGHBOURS = Table(
    file="neighbours.parquet",
    about="One row per feature and each of the ten features of its SAE whose decoder directions "
    "are nearest to its own, of the features whose cards `report.html` has.",
    keys=(*FEATURES.keys, "rank"),
    columns={
        **SUBJECT,
        "layer": LAYER,
        "feature": FEATURES.columns["feature"],
        "rank": Column("int64", "Which of its neighbours, 0 the nearest."),
        "neighbour": Column("int64", "The neighbour's index in the SAE."),
        "cosine": Column("double", "Cosine between the two decoder directions."),
    },
)
"""One row per feature and near decoder direction."""
