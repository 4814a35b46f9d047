"""Write the texts of token rows as JSON Lines, a corpus for the studies.

    python -m experiments.gpu.text --model DIR --scratch DIR --written FILE --target FILE

As many rows of documents as of what the model wrote, without special tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from experiments.gpu.train import take_rows
from experiments.smollm2.activations import Rows

N_ROWS = 2_000
"""Of each kind: a million tokens in all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--written", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    written = np.load(arguments.written)[:N_ROWS]
    documents = np.concatenate(list(Rows(arguments.scratch).rows.values()))
    rows = np.concatenate([take_rows(documents, 0, len(written)), written])
    texts = tokenizer.batch_decode(rows.astype(np.int64), skip_special_tokens=True)
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    arguments.target.write_text("".join(lines))


if __name__ == "__main__":
    main()
