"""Values of `concepts`: a check that needs neither model nor network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steerlens.config.method_settings import check_method_settings
from steerlens.config.registry import parts_of
from steerlens.config.schema import (
    CONCEPT_SOURCES,
    INSTRUCTIONS,
    STEERED_BY,
    ConceptsConfig,
    RunConfig,
)
from steerlens.errors import SteerlensError, unknown


def check_concepts(run: RunConfig, factors: Sequence[float]) -> None:
    """Refuse, in one sentence, what can't work.

    Args:
        run: its concepts, judge and edit.
        factors: the parsed `steer.factors`.
    """
    config = run.concepts
    if config is None:
        return
    _check_source(config)
    _check_methods(config)
    if run.judge is None:
        raise SteerlensError(
            "concepts need a judge of the texts: add judge=lexical|openai|anthropic|local."
        )
    if run.shard is not None and run.judge.name == "lexical":
        raise SteerlensError(
            f"judge=lexical compares with the texts of all concepts, of which shard={run.shard} "
            "sees a part; leave the shard out."
        )
    if not factors or min(factors) <= 0:
        raise SteerlensError(
            "concepts are steered toward with positive factors: add steer=axbench, or "
            "'steer.factors=[0.5,1,2]'."
        )
    if run.steer.operator != "add":
        raise SteerlensError(
            f"steer.operator={run.steer.operator} needs features: of concepts, steer.operator=add "
            "alone is the same for all methods."
        )


def _check_source(config: ConceptsConfig) -> None:
    if config.source not in CONCEPT_SOURCES:
        raise unknown("concepts.source", config.source, CONCEPT_SOURCES)
    if config.instructions not in INSTRUCTIONS:
        raise unknown("concepts.instructions", config.instructions, INSTRUCTIONS)
    for name, least in (("n_train", 1), ("n_test", 0), ("n_prompts", 2), ("features", 1)):
        if getattr(config, name) < least:
            raise SteerlensError(
                f"concepts.{name}={getattr(config, name)} must be at least {least}."
            )
    if config.together < 2:
        raise SteerlensError(f"concepts.together={config.together} must be at least 2.")
    if config.n is not None and config.n < 1:
        raise SteerlensError(f"concepts.n={config.n} must be at least 1.")
    if config.source == "embedded":
        return
    if not config.path:
        value = "DIR, a folder in AxBench's layout" if config.source == "folder" else "OWNER/NAME"
        raise SteerlensError(f"concepts={config.name} needs concepts.path={value}.")
    is_one_folder = config.source == "folder" and "{layer}" not in config.path
    if is_one_folder and not Path(config.path).is_dir():
        raise SteerlensError(f"concepts.path: there is no folder {config.path}.")
    if config.source == "hub" and not config.subset:
        raise SteerlensError(f"concepts={config.name} needs concepts.subset, e.g. 9b/l20.")
    if config.instructions == "released" and not config.instructions_path:
        raise SteerlensError(
            "concepts.instructions=released needs concepts.instructions_path=FILE."
        )
    if config.instructions_path and not Path(config.instructions_path).exists():
        raise SteerlensError(f"concepts.instructions_path: there is no {config.instructions_path}.")


def _check_methods(config: ConceptsConfig) -> None:
    if not config.methods:
        raise SteerlensError("concepts.methods=[] is empty; name what is to steer.")
    valid = {*STEERED_BY, *parts_of("methods")}
    for name in config.methods:
        if name not in valid:
            raise unknown("concepts.methods", name, valid)
    if len(set(config.methods)) < len(config.methods):
        raise SteerlensError("concepts.methods names a method twice.")
    settings = config.settings if config.settings is not None else {}
    if not isinstance(settings, dict):
        raise SteerlensError("concepts.settings must be {METHOD: {SETTING: VALUE}}.")
    for name, method_settings in settings.items():
        if name not in valid:
            raise unknown("concepts.settings: method", str(name), valid)
        if not isinstance(method_settings, dict):
            raise SteerlensError(f"concepts.settings: {name} must be {{SETTING: VALUE}}.")
    check_method_settings(settings)
