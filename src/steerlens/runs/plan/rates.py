"""What work takes on this machine, measured for a subject and settings: kept for later plans."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from steerlens.config.settings import Settings
from steerlens.errors import SteerlensError
from steerlens.storage.files import read_json, write_json
from steerlens.storage.provenance import hardware

OF_ROWS = ("prompts", "n_prompts", "samples", "batch_size")
"""Settings of texts that say how many there are, and nothing of one."""
OF_EDIT = ("operator", "unit", "keep_error", "positions")
"""Settings of steering that say what is done at a position."""


class CorpusPass(NamedTuple):
    """What a pass over the corpus costs, in seconds."""

    texts: float
    """Once."""
    alone: float
    """A token, for this layer alone."""
    more: float
    """A token, for one more SAE in the same pass."""
    at_once: int
    """SAEs that share a pass."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Seconds that work takes; by layer, between which the cost is linear."""

    feature: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Of a feature, by all scoring methods together."""
    block: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Of a block of features, by all of them, besides what each feature takes."""
    once: float = 0.0
    """Of what they make for all layers."""
    null: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Of a layer's random directions."""
    passes: Mapping[int, CorpusPass] = dataclasses.field(default_factory=dict)
    """Of the corpus; none where nothing reads it."""
    text: float | None = None
    """Of a text, with its metrics; None where nothing is steered."""


def read_rates(settings: Settings) -> Rates | None:
    """Read what was measured before on this machine, of this subject and these settings."""
    content = read_json(_file(settings))
    try:
        feature, block, null = (
            {int(layer): float(seconds) for layer, seconds in content[name].items()}
            for name in ("feature", "block", "null")
        )
        passes = {int(layer): CorpusPass(*row) for layer, row in content["passes"].items()}
        once, text = float(content["once"]), content["text"]
        return Rates(feature, block, once, null, passes, None if text is None else float(text))
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def keep_rates(settings: Settings, rates: Rates) -> None:
    """Keep what was just measured; a cache that can't be written is no reason to stop."""
    file = _file(settings)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dataclasses.asdict(rates))
    except (OSError, SteerlensError):
        pass


def _file(settings: Settings) -> Path:
    text = json.dumps(_key(settings), sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return settings.cache_dir / "rates" / f"{name}.json"


def _key(settings: Settings) -> dict[str, Any]:
    """All that the rates depend on, but for the layers."""
    subject, steering = settings.subject, settings.steering
    generation = dataclasses.asdict(steering.generation)
    return {
        "machine": hardware(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "model": dataclasses.asdict(subject.model),
        "sae": dataclasses.asdict(subject.sae),
        "where": [subject.device, subject.dtype, subject.device_map],
        "scores": {name: dataclasses.asdict(score) for name, score in settings.scores.items()},
        "lens": dataclasses.asdict(settings.lens),
        "logit_lens_k": settings.logit_lens_k,
        "corpus": dataclasses.asdict(settings.corpus),
        "steers": bool(steering.factors),
        "texts": {name: value for name, value in generation.items() if name not in OF_ROWS},
        "edit": {name: getattr(steering.steer, name) for name in OF_EDIT},
        "metrics": {name: dataclasses.asdict(metric) for name, metric in steering.metrics.items()},
        "concepts": settings.concepts is not None,
        "evaluator": settings.evaluator and dataclasses.asdict(settings.evaluator),
    }
