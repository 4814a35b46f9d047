"""Tiny tasks in the format of lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = "w20 w21 w22 w23 w24 w25 w26 w27 w28 w29 w30 w31"
ITEMS = [
    {
        "text": " ".join([*WORDS.split()[: 2 + i % 5], f"w{40 + i}"]),
        "choices": [f"w{50 + i} the", f"w{60 + i} w{61 + i}", f"the w{20 + i}"],
        "answer": i % 3,
    }
    for i in range(9)
]
READ = """
import json

def read(path, **_):
    from datasets import Dataset
    return {"test": Dataset.from_list(json.loads(open(path).read()))}
"""


def save_task(
    folder: Path, name: str, items: Sequence[Mapping[str, Any]] = ITEMS, **settings: Any
) -> Path:
    """Write a task with choices, or what `settings` make of it, and return its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "reading.py").write_text(READ)
    (folder / f"{name}.json").write_text(json.dumps(items))
    task = {
        "task": name,
        "dataset_kwargs": {"path": str(folder / f"{name}.json")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **settings,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in task.items()]
    text = "\n".join(["custom_dataset: !function reading.read", *lines])
    (folder / f"{name}.yaml").write_text(text + "\n")
    return folder
