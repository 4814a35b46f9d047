"""Measure whether the default models raw text better with `<|im_start|>` before it.

    python -m experiments.smollm2.bos --model DIR --scratch DIR

Decides `prepend_bos` of the SAEs before they are trained: the loss on the same tokens of the same
documents, with and without."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

CONTEXT = 256
N_DOCUMENTS = 3
BOS_ID = 1


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    differences = []
    for file in sorted((arguments.scratch / "tokens").glob("*.starts.npy")):
        tokens = np.load(file.with_name(file.name.replace(".starts", "")))
        starts = np.load(file)[:N_DOCUMENTS]
        rows = [tokens[s : s + CONTEXT].astype(np.int64) for s in starts]
        ids = torch.tensor(np.stack([row for row in rows if len(row) == CONTEXT]))
        with_bos = torch.cat([torch.full_like(ids[:, :1], BOS_ID), ids], dim=1)
        # Tokens 1 to 255 of a document are predicted in both.
        without = model(ids).logits[:, :-1].flatten(0, 1)
        beside = model(with_bos).logits[:, 1:-1].flatten(0, 1)
        target = ids[:, 1:].flatten()
        losses = [cross_entropy(logits, target).item() for logits in (without, beside)]
        differences.append(losses[1] - losses[0])
        print(
            f"{file.name.split('.')[0]:12s} without {losses[0]:.4f} with {losses[1]:.4f}",
            flush=True,
        )
    print(f"mean difference (with less without): {np.mean(differences):.4f} nats a token")


if __name__ == "__main__":
    main()
