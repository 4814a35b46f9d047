"""A small concept set in AxBench's layout, in words of the tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd


def save_concepts(folder: Path, layer: int, n: int = 2, n_texts: int = 12) -> Path:
    """`n` concepts with texts to train and to test on, each with its feature of `layer`."""
    rows = {
        "train_data": [row for c in range(n) for row in _texts(c, n_texts, 0)],
        "latent_eval_data": [row for c in range(n) for row in _texts(c, 4, 1)],
    }
    folder.mkdir(parents=True)
    for name, table in rows.items():
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    lines = [
        {
            "concept_id": c,
            "concept": f"concept {c}",
            "ref": f"https://www.neuronpedia.org/tiny/{layer}-tiny-res/{5 + c}",
            "concept_genres_map": {f"concept {c}": ["text"]},
        }
        for c in range(n)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def save_instructions(file: Path, n: int = 12) -> Path:
    """A table of instructions."""
    file.write_text("\n".join(json.dumps({"instruction": f"Note that w{k}"}) for k in range(n)))
    return file


def _texts(concept: int, n: int, salt: int) -> list[dict[str, object]]:
    draw = np.random.default_rng([concept, salt])
    rows = []
    for category in ("positive", "negative"):
        own = [f"w{(20 if category == 'positive' else 60) + 10 * concept + k}" for k in range(3)]
        for _ in range(n):
            words = [f"w{100 + k}" for k in draw.integers(0, 40, 6)] + list(draw.choice(own, 3))
            rows.append(
                {
                    "input": "the experience",
                    "output": " " + " ".join(draw.permutation(words)),
                    "output_concept": f"concept {concept}",
                    "concept_genre": "text",
                    "category": category,
                    "concept_id": concept,
                }
            )
    return rows
