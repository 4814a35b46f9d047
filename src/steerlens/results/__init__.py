"""The tables that a run writes: one schema for every run.

Each column has its Arrow type and a sentence that says what it holds; the reference in the
documentation is made from these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlens.results.table import Column, Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CARDS",
    "CHOOSING",
    "CONCEPTS",
    "COVERAGE",
    "EVALUATING",
    "EXAMPLES",
    "FEATURES",
    "GENERATIONS",
    "NEIGHBOURS",
    "NULL_SCORES",
    "PAGE_DATA",
    "PAGE_FILE",
    "RATINGS",
    "REPORT_FILE",
    "SAES",
    "STEERING",
    "SUBJECT",
    "SUMMARY_FILE",
    "TABLES",
    "WORDS",
    "Column",
    "Table",
    "features_alone",
]

REPORT_FILE, SUMMARY_FILE = "report.md", "summary.json"
PAGE_FILE, PAGE_DATA = "report.html", "report.data"
"""The page, and the folder of what it loads when a card is opened."""

SUBJECT = {
    "model": Column("string", "The model's name, as in `model=`."),
    "sae": Column("string", "The SAE's name: its release and id, or its folder."),
    "hook_name": Column("string", "Where in the model the SAE reads, in TransformerLens' words."),
}
"""What is looked at: a model and an SAE at one hook."""

_LAYER = Column("int64", "The layer, from 0.")

FEATURES = Table(
    file="features.parquet",
    about="One row per feature: its scores. What no method of the run has filled is null.",
    keys=(*SUBJECT, "layer", "feature"),
    columns={
        **SUBJECT,
        "layer": _LAYER,
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
        "logit_lens_token_ids": Column("list<int64>", "Their ids in the model's vocabulary."),
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
        "gradient": Column(
            "double",
            "Mean over the positions where the feature fires, in its examples, of activation times "
            "gradient of the log-probability (nats) of the model's greedy next token; null where "
            "it fires in fewer than `score.min_examples` of them.",
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

_STEERED = {
    "layer": _LAYER,
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
_FACTOR = Column("double", "The steering factor; 0 is the text without steering.")
_PROMPT = Column("string", "What the text goes on from, or the request that it answers.")
_SAMPLE = Column("int64", "Which of the texts of one prompt, from 0.")
_TEXT = {
    "text": Column("string", "The continuation, without the prompt."),
    "token_ids": Column("list<int64>", "The new tokens alone, a closing EOS included."),
}
_PERPLEXITY = Column(
    "double",
    "exp of the mean negative log-probability of prompt and text (inside a chat template: of the "
    "answer) under the evaluator, by default the model itself, unsteered; null for fewer than two "
    "tokens.",
)
_DEGENERACY = Column(
    "double",
    "How far the text repeats itself: 1 minus the product of the shares of distinct 2-, 3- and "
    "4-grams; 0 where nothing repeats.",
)
_REPETITION = {
    "repetition": Column(
        "double", "Share of the tokens in the longest stretch with a period of 1 to 4 tokens."
    ),
    "distinct_1": Column("double", "Distinct tokens / tokens."),
    "distinct_2": Column("double", "Distinct 2-grams / 2-grams."),
}
_MAKING = {
    "first_step_kl": Column(
        "double",
        "KL divergence of the first steered next-token distribution from the unsteered one, in "
        "nats.",
    ),
    "stopped_by": Column(
        "string", "What ended the text: `eos`, `stop` (a stop string) or `length`."
    ),
    "near_ties": Column(
        "int64", "How many of its tokens rounding could have decided, on another machine."
    ),
    "seed": Column("int64", "The seed that its tokens were drawn with."),
}

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
        "factor": _FACTOR,
        "prompt": _PROMPT,
        "sample": _SAMPLE,
        **_TEXT,
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
        "perplexity": _PERPLEXITY,
        "degeneracy": _DEGENERACY,
        **_REPETITION,
        **_MAKING,
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
        "undecided": Column(
            "bool",
            "Whether no factor that may be chosen has any success, so that `best_factor` is only "
            "the smallest.",
        ),
        **{f"success_{k}": Column("double", _AT_BEST.format(f"success@{k}")) for k in (1, 5, 20)},
        "concept_success": Column("double", _AT_BEST.format("`concept_success`")),
        "perplexity": Column("double", _AT_BEST.format("perplexity")),
        "degeneracy": Column("double", _AT_BEST.format("degeneracy")),
        "texts": Column("int64", "How many texts these means are of."),
        "success_20_unsteered": Column("double", _UNSTEERED.format("success@20")),
        "concept_success_unsteered": Column("double", _UNSTEERED.format("`concept_success`")),
        "perplexity_unsteered": Column("double", _UNSTEERED.format("perplexity")),
        **{name: FEATURES.columns[name] for name in FEATURES.columns if name not in FEATURES.keys},
    },
)
"""One row per feature (and control, and features together): means at its best factor."""


def features_alone(rows: pd.DataFrame) -> pd.DataFrame:
    """Give the rows of features themselves: of no control, and of no features together.

    Args:
        rows: of `generations.parquet` or `steering.parquet`.
    """
    return rows.loc[rows["control"].isna() & rows["together"].isna()]


SAES = Table(
    file="saes.parquet",
    about="One row per SAE: what it is, and with `quality.n_tokens` how well it reconstructs that "
    "many tokens of the corpus.",
    keys=(*SUBJECT, "layer"),
    columns={
        **SUBJECT,
        "layer": _LAYER,
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
        "layer": _LAYER,
        "direction": Column("int64", "Which of the layer's random directions, from 0."),
        "output_score": Column("double", "Its output score toward its own logit-lens tokens."),
    },
)
"""One row per layer and random direction."""

_TOKENS = Column("list<string>", "The tokens that stand for the word; null where none does.")
_CANDIDATES = Column(
    "int64", "How many features have one of these among their first logit-lens tokens."
)
_BEST_FACTOR = Column("double", "The steering factor that the numbers beside it are of.")

COVERAGE = Table(
    file="coverage.parquet",
    about="One row per layer and word of `coverage.words`: the feature with the highest output "
    "score toward the word, and the share of its steered texts in which the word stands.",
    keys=(*SAES.keys, "word"),
    columns={
        **SUBJECT,
        "layer": _LAYER,
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

CARDS = Table(
    file="cards.parquet",
    about="One row per feature whose card `report.html` has: what is known of it beside its "
    "scores.",
    keys=FEATURES.keys,
    columns={
        **SUBJECT,
        "layer": _LAYER,
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
        "layer": _LAYER,
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
        "layer": _LAYER,
        "feature": FEATURES.columns["feature"],
        "rank": Column("int64", "Which of its neighbours, 0 the nearest."),
        "neighbour": Column("int64", "The neighbour's index in the SAE."),
        "cosine": Column("double", "Cosine between the two decoder directions."),
    },
)
"""One row per feature and near decoder direction."""

CHOOSING, EVALUATING = "choosing", "evaluating"
"""What a concept's prompts are for: they choose the factor, or its result is reported on them."""

_TOWARD = {
    **SUBJECT,
    "layer": _LAYER,
    "method": Column(
        "string", "The method that steers, by its name in Table 1; `No steering` for none."
    ),
    "rank": Column("int64", "Which of a concept's SAE features, 0 the best; 0 of other methods."),
    "concept_id": Column("int64", "The concept's own number in its set."),
    "concept": Column("string", "The concept's name; two of a set may have the same."),
}
"""What is steered toward, and how."""

CONCEPTS = Table(
    file="concepts.parquet",
    about="One row per layer, method and concept, and of several SAE features for a concept also "
    "per rank.",
    keys=(*SAES.keys, "method", "rank", "concept_id"),
    columns={
        **_TOWARD,
        "genre": Column("string", "`text`, `math` or `code`."),
        "feature": Column("int64", "The SAE's feature, if the method steers with one alone."),
        "auroc": Column(
            "double",
            "Area under the ROC curve with which the method tells the concept's texts from others; "
            "null where it detects nothing.",
        ),
        "max_activation": Column(
            "double",
            "Largest score of a text's token in the method's direction; the factor is times it.",
        ),
        "best_factor": Column(
            "double", "The factor with the highest mean rating on the prompts that choose it."
        ),
        "undecided": Column(
            "bool",
            "Whether several factors were rated 0 and none higher, so that it is only the "
            "smallest.",
        ),
        "train_texts": Column(
            "int64", "How many of the concept's texts it was learnt from; null for none."
        ),
        "epochs": Column("int64", "How often training saw them; null where nothing is trained."),
    },
)
"""One row per layer, method and concept."""

_JUDGES = {"llm": "a language model", "lexical": "rules"}
_ASPECTS = {
    "concept": "how clearly the text is about the concept",
    "instruction": "how well it answers the request",
    "fluency": "how well it reads",
}

RATINGS = Table(
    file="ratings.parquet",
    about="One row per text that a judge has rated: 0, 1 or 2 in each aspect, or null and why. A "
    "language model's ratings and those by rules never share a column.",
    keys=(*CONCEPTS.keys, "split", "factor", "prompt", "sample"),
    columns={
        **_TOWARD,
        "split": Column(
            "string",
            "What the prompt is for: `choosing` the factor, or `evaluating` the text at the chosen "
            "one.",
        ),
        "factor": _FACTOR,
        "prompt": _PROMPT,
        "sample": _SAMPLE,
        **_TEXT,
        "perplexity": _PERPLEXITY,
        "degeneracy": _DEGENERACY,
        "judge": Column("string", "Who has rated the text."),
        **{
            name: column
            for kind, judge in _JUDGES.items()
            for aspect, meaning in _ASPECTS.items()
            if (kind, aspect) != ("lexical", "instruction")
            for name, column in {
                f"{kind}_{aspect}": Column("int64", f"Rating by {judge} of {meaning}: 0, 1 or 2."),
                f"{kind}_{aspect}_missing": Column(
                    "string",
                    f"Why there is no rating by {judge} of {meaning} (`unparsable`, `unanswered`, "
                    "`budget`, `unmeasured`; `null` in published files); null where there is one.",
                ),
            }.items()
        },
        **_REPETITION,
        **_MAKING,
    },
)
"""One row per text that a judge has rated."""

TABLES = (
    *(FEATURES, SAES, NULL_SCORES, COVERAGE, CONCEPTS, RATINGS),
    *(GENERATIONS, STEERING, WORDS, CARDS, EXAMPLES, NEIGHBOURS),
)
"""All that a run may write."""
