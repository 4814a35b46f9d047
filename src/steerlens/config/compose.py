"""From overrides to a plain `RunConfig`; whatever is wrong with them is told in one sentence."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from steerlens.config import explain
from steerlens.config.entries import conf_dir, needed_keys, open_keys, option_settings
from steerlens.config.kinds import kind_of, refuse_ignored
from steerlens.config.overrides import as_typed, jobs, n_jobs, override, parse, with_experiment
from steerlens.config.parse import parse_scores
from steerlens.config.resolvers import register
from steerlens.config.schema import MISSING, Chosen, RunConfig
from steerlens.config.score_keys import fold, in_full, is_flat
from steerlens.config.sources import resolve_sources
from steerlens.errors import SteerlensError, unknown
from steerlens.storage.files import CONFIG_FILE

HYDRA_VERSION = "1.3"
CONFIG = "config"
"""The name of the root's file."""

T = TypeVar("T")


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration for `overrides`, as on the command line, without a Hydra run."""
    return to_config(compose_tree(overrides))


def read_config(folder: Path) -> RunConfig:
    """Return the configuration of a run, from the `config.yaml` in its folder."""
    try:
        # Another's file may ask for variables of this environment (`${oc.env:...}`): it is text.
        settings = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("no mapping")
        settings.pop("chosen", None)
        tree = OmegaConf.merge(OmegaConf.structured(RunConfig), literal(settings))
    except OSError as error:
        raise SteerlensError(f"{folder} is no run's folder: it has no {CONFIG_FILE}.") from error
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise SteerlensError(
            f"{folder / CONFIG_FILE} isn't the configuration of a run by this version."
        ) from error
    assert isinstance(tree, DictConfig)
    config = _as_dataclasses(tree)  # its sources are decided
    config.score = parse_scores(config.score)
    return config


def typed_settings(kind: type[T], settings: Mapping[str, Any], whose: str = "") -> T:
    """Return settings given in Python as the dataclass `kind` of the schema, each of its type.

    Raises:
        SteerlensError: there is no such setting, or it has another type; `whose` goes on after
            `setting`.
    """
    try:
        tree = OmegaConf.merge(OmegaConf.structured(kind), literal(dict(settings)))
        typed = OmegaConf.to_object(tree)
    except ConfigKeyError as error:
        names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        raise unknown(f"setting{whose}", str(error.full_key), names) from None
    except OmegaConfBaseException as error:
        raise SteerlensError(f"{error.full_key}{whose}: {explain.reason(error)}.") from error
    assert isinstance(typed, kind)
    return typed


def literal(value: Any) -> Any:
    """Return settings with every interpolation escaped, so that OmegaConf takes it for text."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", value)
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list) else value


def compose_tree(overrides: Sequence[str] = ()) -> DictConfig:
    """Return what Hydra composes from `overrides`, its own `hydra` node included."""
    broken = register()
    with _hydra():
        return _compose(with_experiment(overrides), broken)


def compose_jobs(overrides: Sequence[str], multirun: bool = False) -> list[DictConfig]:
    """Return the tree of a run; for a multirun, one tree for every value that is swept over."""
    broken = register()
    overrides = with_experiment(overrides)
    with _hydra():
        loader = GlobalHydra.instance().config_loader()
        parsed = parse(overrides, multirun=True, loader=loader)
        first = jobs(parsed)[0]
        try:
            tree = _compose(first, broken)
        except SteerlensError:
            if not multirun:
                parse(overrides)  # several values are the first thing to refuse
            raise
        # A file can ask for a sweep as well, by `hydra.mode` and `hydra.sweeper.params`.
        if not (multirun or tree.hydra.mode is RunMode.MULTIRUN):
            parse(overrides)
            return [tree]
        of_files = swept_by_files(tree, overrides)
        if of_files:
            first, *further = jobs(parse([*of_files, *overrides], multirun=True, loader=loader))
            tree = _compose(first, broken)
        else:
            further = jobs(parsed)[1:]
        return [tree, *(_compose(job, broken) for job in further)]


def run_composed(tree: DictConfig, task: TaskFunction) -> None:
    """Run `task` on `tree` as `hydra.main` runs a single job, which would compose it twice more.

    Args:
        tree: of `compose_tree` or `compose_jobs`; Hydra's own node learns where it runs.
        task: is given `tree` without that node.
    """
    with _hydra():
        tree.hydra.mode = RunMode.RUN
        configure_log(tree.hydra.hydra_logging, tree.hydra.verbose)
        callbacks = Callbacks(tree)
        callbacks.on_run_start(config=tree, config_name=CONFIG)
        context = HydraContext(GlobalHydra.instance().config_loader(), callbacks)
        job = run_job(task, tree, "hydra.run.dir", None, context)
        callbacks.on_run_end(config=tree, config_name=CONFIG, job_return=job)


def swept_by_files(tree: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return what `hydra.sweeper.params` of an experiment sweeps over and the command line
    leaves open.
    """
    params = OmegaConf.select(tree, "hydra.sweeper.params") or {}
    typed = {word.lstrip("+~").partition("=")[0] for word in overrides}
    return [f"{key}={value}" for key, value in params.items() if key not in typed]


def is_basic(tree: DictConfig) -> bool:
    """Return whether Hydra's own sweeper runs all combinations, rather than one that chooses."""
    return str(tree.hydra.sweeper._target_).endswith("BasicSweeper")


def count_jobs(overrides: Sequence[str]) -> int | None:
    """Return how many jobs the basic sweeper makes of `overrides`; None if an interval leaves it
    open.
    """
    register()
    with _hydra():
        loader = GlobalHydra.instance().config_loader()
        return n_jobs(parse(overrides, multirun=True, loader=loader))


def _compose(overrides: Sequence[str], broken: dict[str, str]) -> DictConfig:
    parsed = parse(overrides)
    _check_searchpath(parsed)
    tree = _composed_by_hydra(_in_full(parsed, broken), parsed, broken)
    try:
        unknown_key = fold(tree)
    except OmegaConfBaseException as error:
        raise explain.failure(error, parsed, broken) from error
    if unknown_key is not None:
        raise explain.unknown_score_key(unknown_key, tree, parsed)
    explain.refuse_extra_keys(tree)
    _leave_open(tree, tree.hydra)
    explain.refuse_changed_texts(tree, parsed)
    return tree


def _composed_by_hydra(
    overrides: Sequence[str], parsed: Sequence[Override], broken: dict[str, str]
) -> DictConfig:
    """Return what Hydra makes of `overrides`; whatever fails is told of the `parsed` ones, as
    typed.
    """
    try:
        return hydra_compose(CONFIG, list(overrides), return_hydra_config=True)
    except Exception as error:
        raise explain.failure(error, parsed, broken) from error


def _in_full(parsed: Sequence[Override], broken: dict[str, str]) -> list[str]:
    not_flat = [override for override in parsed if not is_flat(override)]
    if len(not_flat) == len(parsed):
        return [override.input_line or "" for override in parsed]
    lines = [override.input_line or "" for override in not_flat]
    return in_full(parsed, _composed_by_hydra(lines, not_flat, broken))


def for_hydra(overrides: Sequence[str], multirun: bool) -> list[str]:
    """Return `overrides` as Hydra itself takes them: see `score_keys.in_full`."""
    broken = register()
    with _hydra():
        loader = GlobalHydra.instance().config_loader()
        parsed = parse(overrides, multirun=True, loader=loader)
        not_flat = [override for override in parsed if not is_flat(override)]
        if len(not_flat) == len(parsed):
            return list(overrides)
        choosing = ("score", "experiment", "subject")
        vary = multirun and any(
            override.is_sweep_override() and override.key_or_group in choosing
            for override in not_flat
        )
        if vary:
            return in_full(parsed, None)
        first = jobs(not_flat)[0]
        return in_full(parsed, _composed_by_hydra(first, parse(first), broken))


def to_config(tree: DictConfig, hydra: Any = None) -> RunConfig:
    """Return `tree` as plain dataclasses, with what it was composed of.

    Args:
        tree: what Hydra has composed.
        hydra: Hydra's own configuration, where `tree` comes without it.

    Raises:
        SteerlensError: a value is missing or can't be resolved.
    """
    config = _with_choices(tree, tree.get("hydra") if hydra is None else hydra)
    kind, refusal = kind_of(config).name, None
    try:
        refuse_ignored(config, usual_values)
    except SteerlensError as error:  # for whoever wants to run it: see `preflight.check`
        refusal = str(error)
    overruled = _overruled(tree, tree.get("hydra") if hydra is None else hydra)
    config.chosen = replace(config.chosen, kind=kind, refusal=refusal, overruled=overruled)
    return config


def _overruled(tree: DictConfig, hydra: Any) -> tuple[str, ...]:
    """Say which values of options that somebody has typed are the experiment's instead: Hydra
    takes an experiment's own values after all options.
    """
    if hydra is None or hydra.runtime.choices.get("experiment") is None:
        return ()
    choices = hydra.runtime.choices
    folders = tuple(str(entry).removeprefix("file://") for entry in hydra.searchpath)
    typed = {word.lstrip("+~").partition("=")[0] for word in hydra.overrides.task}
    of_experiment = option_settings("experiment", choices["experiment"], folders)
    lines = []
    for group in sorted(typed & {*choices} - {"experiment", "subject"}):
        options = [choices[group]] if isinstance(choices[group], str) else choices[group] or []
        for option in options:
            for key, value in option_settings(group, option, folders).items():
                if key in typed or of_experiment.get(key, value) == value:
                    continue
                setting = override(key, value)
                lines.append(
                    f"{group}={option} says {setting}, but "
                    f"experiment={choices['experiment']} sets {as_typed(of_experiment[key])}, "
                    f"which holds; to change it, add {shlex.quote(setting)}."
                )
    return tuple(lines)


def _leave_open(tree: DictConfig, hydra: Any) -> None:
    """Set what the chosen options leave to the user, and nobody has given, to `???`."""
    folders = tuple(str(entry).removeprefix("file://") for entry in hydra.searchpath)
    for group, option in hydra.runtime.choices.items():
        options = [option] if isinstance(option, str) else option or []
        for key in (key for name in options for key in needed_keys(group, name, folders)):
            if OmegaConf.select(tree, key) is None:
                OmegaConf.update(tree, key, MISSING)


def left_open(tree: DictConfig) -> list[str]:
    """Return the overrides by which Hydra, too, shows as `???` what nobody has given."""
    tree = tree.copy()
    with open_dict(tree):
        tree.pop("hydra", None)
    return [f"{key}={MISSING}" for key in _open_keys(tree)]


def _open_keys(tree: DictConfig) -> list[str]:
    return open_keys(OmegaConf.to_container(tree, resolve=False))


def _with_choices(tree: DictConfig, hydra: Any) -> RunConfig:
    if hydra is not None:
        tree = tree.copy()
        _leave_open(tree, hydra)
    config = _as_dataclasses(tree)
    resolve_sources(config)
    if hydra is not None:
        choices = hydra.runtime.choices
        config.chosen = Chosen(
            choices.get("subject"), choices.get("experiment"), tuple(map(str, hydra.searchpath))
        )
    return config


def usual_values(config: RunConfig) -> tuple[RunConfig, RunConfig | None]:
    """Compose what `config` would be if nobody had asked for more than its subject, and for more
    than its experiment (None without one).

    What an experiment wants to be told is as in `config`.
    """
    chosen = config.chosen
    of_subject = [f"subject={chosen.subject}"] if chosen.subject else []
    of_experiment = [f"experiment={chosen.experiment}"] if chosen.experiment else []
    plain = _filled(chosen.searchpath, (*of_subject,), config)
    if not of_experiment:
        return plain, None
    return plain, _filled(chosen.searchpath, (*of_experiment, *of_subject), config)


def _filled(searchpath: Sequence[str], overrides: Sequence[str], config: RunConfig) -> RunConfig:
    tree = _composed(tuple(sys.path), tuple(searchpath), tuple(overrides)).copy()
    with open_dict(tree):
        hydra = tree.pop("hydra")
    for key in _open_keys(tree):
        OmegaConf.update(tree, key, attrgetter(key)(config))
    return _with_choices(tree, hydra)


@cache
def _composed(
    path: tuple[str, ...], searchpath: tuple[str, ...], overrides: tuple[str, ...]
) -> DictConfig:
    """Compose once for all jobs of a sweep."""
    folders = [override("hydra.searchpath", searchpath)] if searchpath else []
    return compose_tree([*folders, *overrides])


def _as_dataclasses(tree: DictConfig) -> RunConfig:
    register()  # the resolvers, in a launcher's process
    tree = tree.copy()
    with open_dict(tree):
        tree.pop("hydra", None)
    try:
        unknown_key = fold(tree)
        if unknown_key is not None:
            raise explain.unknown_score_key(unknown_key, tree)
        if missing := _open_keys(tree):
            raise explain.missing(min(missing), tree)
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise explain.unresolved(error) from error
    assert isinstance(config, RunConfig)
    return config


@contextmanager
def _hydra() -> Iterator[None]:
    """Let Hydra compose, also within a job of its own, to which what is global goes back."""
    of_job = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(
            str(conf_dir()), job_name="steerlens", version_base=HYDRA_VERSION
        ):
            yield
    finally:
        GlobalHydra.instance().hydra = of_job


def _check_searchpath(parsed: Sequence[Override]) -> None:
    """Refuse a folder that isn't there, of which Hydra only warns."""
    for folders in parsed:
        value = folders.value()
        if folders.key_or_group != "hydra.searchpath" or not isinstance(value, list):
            continue
        for entry in value:
            folder = str(entry).removeprefix("file://")
            if not str(entry).startswith("pkg://") and not Path(folder).is_dir():
                raise SteerlensError(f"hydra.searchpath: there is no folder {folder!r}.")
