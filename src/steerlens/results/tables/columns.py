"""Columns that several tables have."""

from __future__ import annotations

from steerlens.results.table import Column

SUBJECT = {
    "model": Column("string", "The model's name, as in `model=`."),
    "sae": Column("string", "The SAE's name: its release and id, or its folder."),
    "hook_name": Column("string", "Where in the model the SAE reads, in TransformerLens' words."),
}
"""What is looked at: a model and an SAE at one hook."""

LAYER = Column("int64", "The layer, from 0.")

FACTOR = Column("double", "The steering factor; 0 is the text without steering.")

PROMPT = Column("string", "What the text goes on from, or the request that it answers.")

SAMPLE = Column("int64", "Which of the texts of one prompt, from 0.")

TEXT = {
    "text": Column("string", "The continuation, without the prompt."),
    "token_ids": Column("list<int64>", "The new tokens alone, a closing EOS included."),
}

PERPLEXITY = Column(
    "double",
    "exp of the mean negative log-probability of prompt and text (inside a chat template: of the "
    "answer) under the evaluator, by default the model itself, unsteered; null for fewer than two "
    "tokens.",
)

KL = Column(
    "double",
    "KL divergence of the steered from the unsteered next-token distribution on the steered text, "
    "in nats: the mean over the tokens of the text, a closing EOS left out; 0 without steering, "
    "null for a text without a token.",
)

DEGENERACY = Column(
    "double",
    "How far the text repeats itself: 1 minus the product of the shares of distinct 2-, 3- and "
    "4-grams; 0 where nothing repeats.",
)

REPETITION = {
    "repetition": Column(
        "double", "Share of the tokens in the longest stretch with a period of 1 to 4 tokens."
    ),
    "distinct_1": Column("double", "Distinct tokens / tokens."),
    "distinct_2": Column("double", "Distinct 2-grams / 2-grams."),
}

SIDE_EFFECT_RATIO = Column(
    "double", "`worse` / `changed` (CorrSteer, arXiv 2508.12535); null where none changed."
)

SIDE_EFFECTS = {
    "changed": Column(
        "int64",
        "How many rated texts at `best_factor` aren't the unsteered ones of the same prompts (of a "
        "concept: of those that evaluate); null without a judge.",
    ),
    "worse": Column(
        "int64",
        "How many of these are rated lower than the unsteered ones, all aspects but the concept "
        "together.",
    ),
    "side_effect_ratio": SIDE_EFFECT_RATIO,
}

MAKING = {
    "first_step_kl": Column(
        "double",
        "KL divergence of the first steered next-token distribution from the unsteered one, in "
        "nats.",
    ),
    "relative_dose": Column(
        "double",
        "Norm of the change over the norm of the vector at the hook that it changes, the mean over "
        "the edited positions; 0 without steering, null of a method that changes several layers.",
    ),
    "stopped_by": Column(
        "string", "What ended the text: `eos`, `stop` (a stop string) or `length`."
    ),
    "near_ties": Column(
        "int64", "How many of its tokens rounding could have decided, on another machine."
    ),
    "seed": Column("int64", "The seed that its tokens were drawn with."),
}
