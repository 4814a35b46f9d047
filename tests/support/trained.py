"""The small trained model and SAE that tests use where a trained one is the point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steerlens import load_subject
from steerlens.engine.subject import Subject

FOLDER = Path(__file__).parents[1] / "fixtures" / "trained"
LAYER = 5
"""The block after which its SAE reads."""


def trained_subject(**settings: Any) -> Subject:
    """Load the trained subject; `settings` are other keys of the configuration."""
    paths = {"model.path": FOLDER / "model", "sae.path": FOLDER / "sae-batchtopk"}
    return load_subject("local", "local", LAYER, **paths, **settings)
