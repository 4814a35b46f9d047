"""Ratings of steered texts, made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from steerlens.results import CHOOSING, CONCEPTS, EVALUATING, FEATURES, RATINGS
from steerlens.results.folder import RunTables

SUBJECT = {"model": "tiny", "sae": "tiny", "hook_name": "blocks.4.hook_resid_post", "layer": 4}
ARMS = [("SAE", 0), ("SAE", 1), ("DiffMean", 0), ("Random", 0), ("Prompt", 0)]
N_CONCEPTS = 10
FACTORS = (0.5, 1.0, 4.0)


def ratings_of(split: str = CHOOSING, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Texts of every arm and concept at all factors, or for `evaluating` at one of them."""
    draw = np.random.default_rng(seed)
    rows = []
    for method, rank in ARMS:
        for concept in range(N_CONCEPTS):
            factors = FACTORS if split == CHOOSING else [float(draw.choice(FACTORS))]
            for factor in [0.0] if method == "Prompt" else factors:
                for prompt in range(4):
                    rows.append(
                        {
                            **SUBJECT,
                            "method": method,
                            "rank": rank,
                            "concept_id": concept,
                            "concept": f"concept {concept}",
                            "split": split,
                            "factor": factor,
                            "prompt": f"{split} {prompt}",
                            "sample": 0,
                            "text": "a text",
                            "judge": "lexical",
                            "lexical_concept": int(draw.integers(0, 3)),
                            "lexical_fluency": int(draw.integers(0, 3)),
                        }
                    )
    return RATINGS.frame(pd.DataFrame(rows).assign(**columns))


def rated_tables(seed: int = 0) -> RunTables:
    """A run whose SAE features have the output scores 10^-(2 concept + rank)."""
    parts = [ratings_of(EVALUATING, seed), ratings_of(CHOOSING, seed + 1)]
    arms = [(m, r, c) for m, r in ARMS for c in range(N_CONCEPTS)]
    concepts = pd.DataFrame(
        [
            {
                **SUBJECT,
                "method": method,
                "rank": rank,
                "concept_id": concept,
                "concept": f"concept {concept}",
                "feature": 10 * concept + rank if method == "SAE" else None,
                "train_texts": 40 + concept if method == "DiffMean" else None,
                "epochs": None,
                "train_rows": 4 * (40 + concept) if method == "DiffMean" else None,
                "auroc": 0.5 + 0.05 * concept if method != "Prompt" else None,
            }
            for method, rank, concept in arms
        ]
    ).astype(dict.fromkeys(("feature", "train_texts", "epochs", "train_rows"), "Int64"))
    features = pd.DataFrame(
        [
            {
                **SUBJECT,
                "feature": 10 * concept + rank,
                "output_score": 10.0 ** -(concept + rank),
                "token_confidence_delta": float(concept - 3 * rank),
            }
            for method, rank, concept in arms
            if method == "SAE"
        ]
    )
    return RunTables(
        FEATURES.frame(features),
        concepts=CONCEPTS.frame(concepts),
        ratings=RATINGS.frame(pd.concat(parts, ignore_index=True)),
    )
