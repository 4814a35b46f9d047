"""Which SAE features steer a language model, toward what, how strongly, and is it worth it?

import steerlens
subject = steerlens.load_subject("smollm2-135m-instruct", "smollm2-topk", layer=19)
frame = steerlens.score_features(subject, "output", features=range(100))
candidates = steerlens.find(subject, "music")
texts = steerlens.generate(subject, features=123, factors=[1, 2, 4])
with steerlens.steer(subject, feature=123, factor=4):
    print(subject.lm.bridge.generate("Note that"))
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.engine.intervention.context import steer
    from steerlens.report.loaded import load_run
    from steerlens.runs.api import find, generate, load_subject, score_features

__path__.append(str(Path(__file__).with_name("earlier_names")))
__version__ = version("steerlens")
__all__ = [
    "SteerlensError",
    "__version__",
    "find",
    "generate",
    "load_run",
    "load_subject",
    "score_features",
    "steer",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can answer without importing torch.
    if name in ("find", "generate", "load_subject", "score_features"):
        return getattr(import_module("steerlens.runs.api"), name)
    if name == "steer":
        return import_module("steerlens.engine.intervention.context").steer
    if name == "load_run":
        return import_module("steerlens.report.loaded").load_run
    raise AttributeError(f"module 'steerlens' has no attribute {name!r}")
