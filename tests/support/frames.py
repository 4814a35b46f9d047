"""Tables of features without a model, with the tokens that real vocabularies have."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from steerlens.analysis.capability import compared_answers
from steerlens.config.schema import ChoiceConfig
from steerlens.results import CAPABILITY, FEATURES, GENERATIONS, NULL_SCORES, STEERING
from steerlens.results.folder import RunTables
from steerlens.results.pmi import Pmi

NASTY = ["[bold red]x[/]", "\x1b[31mred", "\u202eabc", "\n", " the", "`|<b>", "$x_1$", "\u0301", ""]


def frame(layers: Iterable[int] = range(3), n: int = 12, **columns: Any) -> pd.DataFrame:
    """`n` features in each of `layers` with scores from 1e-12 to 1; `columns` replace others."""
    layer = np.repeat(np.array(list(layers), dtype=np.int64), n)
    size = len(layer)
    tokens = [NASTY[i % len(NASTY) :] + NASTY[: i % len(NASTY)] for i in range(size)]
    filled: dict[str, Any] = {
        "model": "toy",
        "sae": "toy-sae",
        "hook_name": [f"blocks.{i}.hook_resid_post" for i in layer],
        "layer": layer,
        "feature": np.tile(np.arange(n), len(layer) // n),
        "output_score": np.random.default_rng(0).permutation(np.geomspace(1e-12, 0.99, size)),
        "output_rank": np.arange(size),
        "output_probability": np.linspace(0, 1, size),
        "input_score": np.random.default_rng(1).permutation(np.linspace(0, 1, size)),
        "output_token": [row[0] for row in tokens],
        "logit_lens_tokens": tokens,
        "logit_lens_token_ids": np.zeros((size, len(NASTY)), dtype=np.int64),
    }
    return FEATURES.frame(filled | columns)


def null_scores(layers: Iterable[int] = range(3), n: int = 99, **columns: Any) -> pd.DataFrame:
    """Output scores of `n` random directions in each of `layers`; `columns` replace others."""
    layer = np.repeat(np.array(list(layers), dtype=np.int64), n)
    filled: dict[str, Any] = {
        "model": "toy",
        "sae": "toy-sae",
        "hook_name": [f"blocks.{i}.hook_resid_post" for i in layer],
        "layer": layer,
        "direction": np.tile(np.arange(n), len(layer) // n),
        "output_score": np.random.default_rng(2).permutation(np.geomspace(1e-9, 0.5, len(layer))),
    }
    return NULL_SCORES.frame(filled | columns)


def generations(
    n: int = 6,
    factors: Iterable[float] = (0.0, 0.5, 2.0, 8.0),
    prompts: Iterable[str] = ("Note that", "In the", "It is", "We"),
    layers: Iterable[int] = (0, 1),
    **columns: Any,
) -> pd.DataFrame:
    """Texts of `n` features in each of `layers`, in which stronger steering has more success and a
    higher perplexity, and some features have no success at all."""
    rng = np.random.default_rng(0)
    rows = [
        {"layer": layer, "feature": feature, "factor": factor, "prompt": prompt, "sample": 0}
        for layer in layers
        for feature in range(n)
        for factor in factors
        for prompt in prompts
    ]
    for index, row in enumerate(rows):
        strength = 0.0 if row["feature"] % 3 == 2 else row["factor"] / (2 + row["feature"])
        row["success_20"] = int(rng.poisson(strength))
        row["success_5"] = int(rng.binomial(row["success_20"], 0.6))
        row["success_1"] = int(rng.binomial(row["success_5"], 0.4))
        row["perplexity"] = float(np.exp(3 + 0.2 * row["factor"] + 0.1 * rng.normal()))
        row["degeneracy"] = float(rng.uniform(0, min(1.0, 0.05 + 0.1 * row["factor"])))
        row["text"] = "".join(NASTY[index % len(NASTY) :] + NASTY[: index % 3])
        row["token_ids"] = rng.integers(0, len(NASTY), 5).tolist()
        row |= {"model": "toy", "sae": "toy-sae", "stopped_by": "length", "seed": index}
        row |= {"hook_name": f"blocks.{row['layer']}.hook_resid_post", "near_ties": 0}
    return GENERATIONS.frame(pd.DataFrame(rows).assign(**columns))


def capability(
    n: int = 6,
    items: int = 40,
    factors: Iterable[float] = (0.0, 0.5, 2.0, 8.0),
    layers: Iterable[int] = (0, 1),
    **columns: Any,
) -> pd.DataFrame:
    """Answers of `n` features in each of `layers`, and of a random direction beside each, to two
    tasks: a right answer is lost to the item's place in a row, the earlier the stronger the
    feature; random directions lose none."""
    before = [float(item % 4 > 0) for item in range(items)]
    rows = []
    for layer, feature, control, task, factor in product(
        layers, range(n), (None, "random_direction"), ("one", "two"), factors
    ):
        lost = 0 if control else min(items, round(items * factor / 20) + feature * (factor > 0))
        after = [0.0] * lost + before[lost:]
        answers = [
            f"{score:g}{'' if item >= lost else ' lost'}" for item, score in enumerate(after)
        ]
        of_row = compared_answers(
            {"item_scores": after, "answers": answers},
            {"item_scores": before, "answers": [f"{score:g}" for score in before]},
        )
        about = {"layer": layer, "feature": feature, "control": control, "task": task}
        rows.append({**about, "factor": factor, "metric": "acc", **of_row})
    filled = {"model": "toy", "sae": "toy-sae", "hook_name": "blocks.0.hook_resid_post"} | columns
    return CAPABILITY.frame(pd.DataFrame(rows).assign(**filled))


def steering(layers: Iterable[int] = (0, 1), n: int = 6, **columns: Any) -> pd.DataFrame:
    """`n` steered features in each of `layers`; `columns` replace others."""
    table = frame(layers, n)
    filled = {"best_factor": 2.0, "success_20": 1.0, "perplexity": 30.0} | columns
    return STEERING.frame(table.assign(**filled))


def tables(**columns: Any) -> RunTables:
    """A run that steered six features in each of two layers; `columns` replace others of the
    steering table."""
    return RunTables(frame((0, 1), 6), generations(), steering(**columns), choice=ChoiceConfig())


def found_pmi(n: int = 30) -> Pmi:
    """PMI of `n` pairs of five features."""
    rng = np.random.default_rng(0)
    pairs = {
        "model": "a $b_c$ model",
        "sae": "s",
        "hook_name": "h",
        "layer": 3,
        "feature": rng.integers(0, 5, n),
        "role": rng.choice(["input", "hybrid", "neither"], n),
        "token": [f"_word_{i}" for i in range(n)],
        "top_token": "日本",
        "times": 1234,
        "token_count": 20,
        "top_count": 10,
        "together": 5,
        "pmi": rng.normal(size=n),
    }
    return Pmi(pd.DataFrame(pairs), windows=1000, dropped={"no word": 3, "rare word": 4})


def of_every_role(**columns: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Steered features and their texts, with input, output and hybrid features in two layers."""
    scores = {"input_score": [0.9, 0.0, 0.5, 0.4] * 2, "output_score": [0.0, 0.9, 0.5, 0.4] * 2}
    return steering((0, 1), 4, **(scores | columns)), generations(n=4)


def assert_identical(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal to the last bit. Pandas' own `check_exact` lets rounding pass in nullable columns."""
    pd.testing.assert_frame_equal(one, other)
    assert one.equals(other)
