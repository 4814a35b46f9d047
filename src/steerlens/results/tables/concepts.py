"""Tables of methods that steer toward concepts, and of their rated texts."""

from __future__ import annotations

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
    SIDE_EFFECTS,
    SUBJECT,
    TEXT,
)
from steerlens.results.tables.features import SAES

CHOOSING, EVALUATING = "choosing", "evaluating"
"""What a concept's prompts are for: they choose the factor, or its result is reported on them."""

_TOWARD = {
    **SUBJECT,
    "layer": LAYER,
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
            "What the factor is times: the largest score of a text's token in the method's "
            "direction, or what the method itself says (CorrSteer, RePS).",
        ),
        "best_factor": Column(
            "double", "The factor with the highest mean rating on the prompts that choose it."
        ),
        "undecided": Column(
            "bool",
            "Whether several factors were rated 0 and none higher, so that it is only the "
            "smallest.",
        ),
        **SIDE_EFFECTS,
        "train_texts": Column(
            "int64", "How many of the concept's texts it was learnt from; null for none."
        ),
        "epochs": Column("int64", "How often training saw them; null where nothing is trained."),
        "train_rows": Column(
            "int64",
            "How many rows of texts training went through: of RePS four a text, its own and the "
            "model's answer, each with and without the vector.",
        ),
        "train_steps": Column("int64", "How many steps the optimizer took."),
        "vectors_measured": Column(
            "int64",
            "How many vectors were steered with to learn what steering does, for all concepts "
            "together (SAE-TS).",
        ),
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
        "factor": FACTOR,
        "prompt": PROMPT,
        "sample": SAMPLE,
        **TEXT,
        "perplexity": PERPLEXITY,
        "kl": KL,
        "degeneracy": DEGENERACY,
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
        **REPETITION,
        **MAKING,
    },
)
"""One row per text that a judge has rated."""
