"""The published scores of the paper's authors in our schema, from their JSON caches:
`{"layer": [ids]}` and `{"layer_feature": number}`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from steerlens.config.reference import (
    COLUMNS,
    KNOWN,
    Key,
    cache_file,
    check_reference,
    json_pairs,
    listed_features,
)
from steerlens.config.schema import ReferenceConfig
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES
from steerlens.results.reference import Reference


def read_reference(config: ReferenceConfig) -> Reference:
    """Return the listed features with their published scores, and what is wrong with the files.

    Raises:
        SteerlensError: files that are missing, no such JSON, or of another model.
    """
    check_reference(config)
    assert config.model is not None
    reference = KNOWN[config.model]
    listed, twice = listed_features(config)
    findings = [f"{twice:,} features are listed twice: each counts once."] if twice else []
    rows: dict[str, Any] = {
        "model": reference.model,
        "sae": reference.sae,
        "hook_name": [f"blocks.{layer}.hook_resid_post" for layer, _ in listed],
        "layer": [layer for layer, _ in listed],
        "feature": [feature for _, feature in listed],
    }
    for key, (column, _, valid) in COLUMNS.items():
        file = cache_file(config, key)
        if file is None:
            findings.append(f"There is no file of {key.replace('_', ' ')}.")
            continue
        numbers, sentences = _numbers(file, set(listed), valid)
        rows[column] = [numbers.get(key) for key in listed]
        findings += sentences
    return Reference(FEATURES.frame(rows), config.model, findings, config.alone)


def _numbers(
    file: Path, listed: set[Key], valid: tuple[float, float]
) -> tuple[dict[Key, float], list[str]]:
    """Return the sound numbers of listed features, and sentences on all others."""
    wrong: Counter[str] = Counter()
    numbers: dict[Key, float] = {}
    differ: set[Key] = set()
    for text, value in json_pairs(file):
        match = re.fullmatch(r"(\d+)_(\d+)", text)
        key = (int(match[1]), int(match[2])) if match else None
        if key is None:
            wrong["keys are no layer_feature"] += 1
        elif key not in listed:
            wrong["scores are of features that aren't listed"] += 1
        elif isinstance(value, bool) or not isinstance(value, float | int):
            wrong["listed features have something else than a number"] += 1
        elif not math.isfinite(value):
            wrong["listed features have no finite number"] += 1
        elif not valid[0] <= value <= valid[1]:
            wrong["listed features have a number outside 0 to 1"] += 1
        elif key in numbers:
            wrong["keys are there again"] += 1
            if numbers[key] != value:
                differ.add(key)
        else:
            numbers[key] = float(value)
    if not numbers and not differ:
        raise SteerlensError(f"{file} has no score of a listed feature: it is of another model.")
    for key in differ:
        del numbers[key]
    wrong["listed features have two different numbers"] = len(differ)
    wrong["listed features are left without a number"] = len(listed) - len(numbers)
    return numbers, [f"{file.name}: {n:,} {problem}." for problem, n in wrong.items() if n]
