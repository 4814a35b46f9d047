"""The scoring of a run, without what follows it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from steerlens.config.schema import RunConfig
from steerlens.config.settings import parse_settings
from steerlens.engine.subject import WeightCache
from steerlens.runs.models import RunModels
from steerlens.runs.run import context_of
from steerlens.runs.run_folder import RunFolder
from steerlens.runs.score import score
from steerlens.storage.files import make_folder


def scored(
    config: RunConfig, folder: Path, weight_cache: WeightCache | None = None
) -> pd.DataFrame:
    """Score what `config` asks for; the tables lie in `folder` afterwards."""
    settings = parse_settings(config)
    models = RunModels(settings.subject, settings.evaluator, weight_cache)
    run_folder = RunFolder(make_folder(folder), settings.seed)
    return score(settings, context_of(settings), models, run_folder)
