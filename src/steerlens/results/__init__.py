"""The tables that a run writes: one schema for every run."""

from __future__ import annotations

from steerlens.results.table import Table

__all__ = [
    "CHOOSING",
    "CONCEPTS",
    "COVERAGE",
    "EVALUATING",
    "FEATURES",
    "GENERATIONS",
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
    "Table",
]

REPORT_FILE, SUMMARY_FILE = "report.md", "summary.json"
PAGE_FILE, PAGE_DATA = "report.html", "report.data"
"""The page, and the folder of what it loads when a card is opened."""

SUBJECT = {"model": "string", "sae": "string", "hook_name": "string"}

FEATURES = Table(
    file="features.parquet",
    keys=("model", "sae", "hook_name", "layer", "feature"),
    columns={
        **SUBJECT,
        "layer": "int64",
        "feature": "int64",
        "output_score": "double",
        "output_score_delta": "double",
        "output_score_p": "double",
        "output_rank": "int64",
        "output_probability": "double",
        "output_token": "string",
        "input_score": "double",
        "input_score_unique": "double",
        "input_examples": "int64",
        "logit_lens_tokens": "list<string>",
        "logit_lens_token_ids": "list<int64>",
        "input_top_examples": "list<string>",
        "token_confidence_delta": "double",
        "max_activation": "double",
        "mean_activation": "double",
        "activation_frequency": "double",
        "random_score": "double",
        "concept_score": "double",
        "concept_token": "string",
        "output_score_mean": "double",
        "output_score_std": "double",
        "output_score_by_prompt": "list<double>",
        "label": "string",
        "neuronpedia_url": "string",
    },
)
"""One row per feature: its scores.

`output_score_p` is the share of the layer's random directions (see `NULL_SCORES`) whose output
score is at least as high, the feature itself counted among them.
"""

GENERATIONS = Table(
    file="generations.parquet",
    keys=(*FEATURES.keys, "factor", "prompt", "sample"),
    columns={
        **SUBJECT,
        "layer": "int64",
        "feature": "int64",
        "control": "string",
        "concept": "string",
        "factor": "double",
        "prompt": "string",
        "sample": "int64",
        "text": "string",
        "token_ids": "list<int64>",
        "success_1": "int64",
        "success_5": "int64",
        "success_20": "int64",
        "success_1_ids": "int64",
        "success_5_ids": "int64",
        "success_20_ids": "int64",
        "concept_success": "int64",
        "perplexity": "double",
        "degeneracy": "double",
        "repetition": "double",
        "distinct_1": "double",
        "distinct_2": "double",
        "first_step_kl": "double",
        "stopped_by": "string",
        "near_ties": "int64",
        "seed": "int64",
    },
)
"""One row per text: (layer, feature, factor, prompt, sample), factor 0 included for every feature.

`control` is null for the feature alone, else says what was steered with instead:
`random_direction`, `random_feature`, or the other features of `steer.together` (`+12+57`). `text`
is the continuation without the prompt, `token_ids` the new tokens only, a closing EOS included.
`success_k` counts the tokens of the re-tokenised continuation that are among the k logit-lens
tokens of `feature`, whatever the control (as published), `success_k_ids` those of `token_ids`;
`concept_success` counts, as published, those of `concept`, what the text was steered toward.
"""

STEERING = Table(
    file="steering.parquet",
    keys=FEATURES.keys,
    columns={
        **SUBJECT,
        "layer": "int64",
        "feature": "int64",
        "control": "string",
        "concept": "string",
        "best_factor": "double",
        "undecided": "bool",
        "success_1": "double",
        "success_5": "double",
        "success_20": "double",
        "concept_success": "double",
        "perplexity": "double",
        "degeneracy": "double",
        "texts": "int64",
        "success_20_unsteered": "double",
        "concept_success_unsteered": "double",
        "perplexity_unsteered": "double",
        **{name: FEATURES.columns[name] for name in FEATURES.columns if name not in FEATURES.keys},
    },
)
"""One row per feature (and control): means over its texts at its best factor, and its scores.

`best_factor` and the means are null where every factor is over the cap. `undecided` are rows
without success at any factor that may be chosen: their best factor is only the smallest.
"""

SAES = Table(
    file="saes.parquet",
    keys=(*SUBJECT, "layer"),
    columns={
        **SUBJECT,
        "layer": "int64",
        "n_layers": "int64",
        "architecture": "string",
        "d_in": "int64",
        "d_sae": "int64",
        "parameters": "int64",
        "tokens": "int64",
        "explained_variance": "double",
        "l0": "double",
        "dead_share": "double",
    },
)
"""One row per SAE: what it is, and with `quality.n_tokens` how well it reconstructs that many
tokens of the corpus."""

NULL_SCORES = Table(
    file="null.parquet",
    keys=(*SAES.keys, "direction"),
    columns={
        **SUBJECT,
        "layer": "int64",
        "direction": "int64",
        "output_score": "double",
    },
)
"""One row per layer and random direction: its output score, with which those of the layer's
features are compared."""

COVERAGE = Table(
    file="coverage.parquet",
    keys=(*SAES.keys, "word"),
    columns={
        **SUBJECT,
        "layer": "int64",
        "word": "string",
        "tokens": "list<string>",
        "candidates": "int64",
        "feature": "int64",
        "concept_score": "double",
        "best_factor": "double",
        "shown": "double",
        "shown_unsteered": "double",
        "perplexity": "double",
        "perplexity_unsteered": "double",
        "texts": "int64",
        "reason": "string",
    },
)
"""One row per layer and word of `coverage.words`: the feature with the highest output score toward
the word, and the share of its steered texts in which the word stands; `reason` says why a column
is null."""

WORDS = Table(
    file="words.parquet",
    keys=("word",),
    columns={
        "word": "string",
        "tokens": "list<string>",
        "token_ids": "list<int64>",
        "candidates": "int64",
        "layer": "int64",
        "feature": "int64",
        "concept_score": "double",
        "best_factor": "double",
        "concept_success": "double",
        "concept_success_unsteered": "double",
        "texts": "int64",
        "reason": "string",
    },
)
"""One row per concept that a run looked for a steering feature for, in the order in which it did:
the feature that writes most of its tokens (before any text: that with the highest output score
toward it), and how many tokens a text it writes at its best factor; `reason` says why nothing
steers toward it, and is null where a feature does."""

CHOOSING, EVALUATING = "choosing", "evaluating"
"""What a concept's prompts are for: they choose the factor, or its result is reported on them."""

_TOWARD = {
    **SUBJECT,
    "layer": "int64",
    "method": "string",
    "rank": "int64",
    "concept_id": "int64",
    "concept": "string",
}
"""What is steered toward, and how."""

CONCEPTS = Table(
    file="concepts.parquet",
    keys=(*SAES.keys, "method", "rank", "concept_id"),
    columns={
        **_TOWARD,
        "genre": "string",
        "feature": "int64",
        "auroc": "double",
        "max_activation": "double",
        "best_factor": "double",
        "undecided": "bool",
        "train_texts": "int64",
        "epochs": "int64",
    },
)
"""One row per layer, method and concept (of several SAE features for a concept also `rank`, 0 the
best): the feature, if one is steered with; the area under the ROC curve with which the method
detects the concept; the factor that the prompts to choose by chose, and whether it is `undecided`,
as all were rated 0; how many of the concept's texts the method was learnt from, and how often
training saw them."""

RATINGS = Table(
    file="ratings.parquet",
    keys=(*CONCEPTS.keys, "factor", "prompt", "sample"),
    columns={
        **_TOWARD,
        "split": "string",
        "factor": "double",
        "prompt": "string",
        "sample": "int64",
        "text": "string",
        "token_ids": "list<int64>",
        "perplexity": "double",
        "degeneracy": "double",
        "judge": "string",
        **{
            f"{kind}_{aspect}{end}": type
            for kind in ("llm", "lexical")
            for aspect in ("concept", "instruction", "fluency")
            for end, type in (("", "int64"), ("_missing", "string"))
            if (kind, aspect) != ("lexical", "instruction")
        },
    },
)
"""One row per text that a judge has rated: 0, 1 or 2 in each aspect, or null and why. A language
model's ratings and those by rules never share a column."""

TABLES = (
    *(FEATURES, SAES, NULL_SCORES, COVERAGE, CONCEPTS, RATINGS),
    *(GENERATIONS, STEERING, WORDS),
)
"""All that a run may write."""
