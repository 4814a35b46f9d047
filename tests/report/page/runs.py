"""Runs whose every text tries to be more than text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from steerlens.analysis.summary import summarise
from steerlens.report.page import write_run_page
from steerlens.results import CARDS, EXAMPLES, NEIGHBOURS, WORDS
from steerlens.results.folder import RunTables
from tests.support.frames import frame, generations, null_scores, steering

HOSTILE = [
    "<script>window.broken=1</script>",
    "</script><script>window.broken=2</script>",
    '<img src=x onerror="window.broken=3">',
    "javascript:window.broken=4",
    "\u202egnp.exe",
    "\x1b[31mred\x1b[0m",
    "<!--<script>",
    "{{ 7*7 }}&amp;\u2028",
    "]]>'\"`",
    "🙂e\u0301",
]


def hostile_tables(n: int = 12) -> RunTables:
    """A run of two layers with steered features, a word, texts and cards, all of hostile text."""
    tokens = [HOSTILE[i % len(HOSTILE) :] + HOSTILE[: i % len(HOSTILE)] for i in range(2 * n)]
    features = frame(
        (0, 1),
        n,
        model=HOSTILE[0],
        sae=HOSTILE[2],
        logit_lens_tokens=tokens,
        logit_lens_token_ids=[list(range(len(HOSTILE)))] * (2 * n),
        label=[HOSTILE[i % len(HOSTILE)] for i in range(2 * n)],
        neuronpedia_url="javascript:window.broken=5",
        input_top_examples=[[f"before «{HOSTILE[1]}» after"]] * (2 * n),
    )
    texts = generations(n=3, prompts=(HOSTILE[1], HOSTILE[2]), concept=HOSTILE[0])
    texts = texts.assign(text=[HOSTILE[i % len(HOSTILE)] for i in range(len(texts))])
    steered = steering(
        (0, 1),
        3,
        concept=HOSTILE[0],
        concept_success=1.5,
        concept_success_unsteered=0.0,
        perplexity_unsteered=20.0,
        concept_score=0.4,
    )
    word = {
        "word": HOSTILE[0],
        "tokens": HOSTILE[:3],
        "token_ids": [0, 1, 2],
        "candidates": 3,
        "layer": 0,
        "feature": 0,
        "concept_success": 1.5,
    }
    key = {"model": "m", "sae": "s", "hook_name": "h", "layer": 0, "feature": 1}
    return RunTables(
        features,
        texts,
        steered,
        null_scores=null_scores((0, 1)),
        words=WORDS.frame([word]),
        cards=CARDS.frame(
            [
                {
                    **key,
                    "suppressed_tokens": HOSTILE,
                    "suppressed_logits": [-1.0] * len(HOSTILE),
                    "activation_histogram": [5, 3, 0, 1],
                    "activation_histogram_range": 8.0,
                    "activation_frequency": 0.01,
                }
            ]
        ),
        examples=EXAMPLES.frame(
            [{**key, "example": 0, "tokens": HOSTILE[:3], "activations": [0.0, 4.0, 1.0]}]
        ),
        neighbours=NEIGHBOURS.frame([{**key, "rank": 0, "neighbour": 3, "cosine": 0.5}]),
        command=f"steerlens {HOSTILE[1]}",
        notes=(HOSTILE[2],),
    )


def save_page(tables: RunTables, folder: Path, **summary: Any) -> Path:
    """The page of `tables` in `folder`."""
    return write_run_page(tables, summarise(tables) | {"study": None} | summary, folder)


def without_texts(tables: RunTables, **columns: Any) -> RunTables:
    """The same run, with other columns of its features and nothing steered."""
    features: pd.DataFrame = tables.features.assign(**columns)
    return dataclasses.replace(RunTables(features), command=tables.command)
