"""Write the text that the shipped examples are computed from, as JSON lines.

    python -m experiments.smollm2.examples --model DIR --scratch DIR
    steerlens examples packages/smollm2/steerlens_smollm2/examples/smollm2-topk.parquet \
        sae=smollm2-topk layer=all corpus=jsonl corpus.path=DIR/examples.jsonl \
        corpus.column=text corpus.shippable=shippable corpus.n_tokens=500000

A line has `text` and `shippable`: whether its windows may be shown (`corpus.SHIPPABLE`). Statistics
and peaks count all lines. """

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from experiments.smollm2.activations import Rows
from experiments.smollm2.corpus import SHIPPABLE

SAMPLED_ROWS = 576
SHARES = {"wikipedia": 90_000, "wordnet": 60_000, "jargon": 40_000, "bible": 30_000}
"""Tokens of a source; of every other one, `OTHER`."""
OTHER = 22_000
PIECE = 128
"""Tokens of a text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = Rows(arguments.scratch)
    lines = []
    for name, of_source in {**rows.rows, "samples": rows.sampled}.items():
        n = SAMPLED_ROWS * 256 if name == "samples" else SHARES.get(name, OTHER)
        chosen = np.random.default_rng(0).permutation(len(of_source))[: n // of_source.shape[1]]
        for ids in of_source[chosen, 1:]:
            for piece in (ids[:PIECE], ids[PIECE:]):
                text = tokenizer.decode(piece)
                lines.append({"text": text, "source": name, "shippable": name in SHIPPABLE})
    random.Random(0).shuffle(lines)
    with (arguments.scratch / "examples.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
