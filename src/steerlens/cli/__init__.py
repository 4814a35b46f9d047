"""The one command: help, verbs and refused input first, then Hydra."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from steerlens.errors import SteerlensError, Terminated

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from steerlens.engine.subject import WeightCache

HELP = ("--help", "-h")
INFO = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run `steerlens` with the arguments `argv` (default: the shell's) and exit."""
    words = list(sys.argv[1:] if argv is None else argv)
    _end_in_order_at_sigterm()
    debug = any(word.lower() in ("debug=true", "debug=1") for word in words)
    try:
        with _warnings_shown():
            sys.exit(_dispatch(words))
    except Terminated:
        goes_on = "; what is finished is kept, and the same command goes on from there"
        is_server = words[:1] == ["play"]
        print(f"steerlens: ended by SIGTERM{'' if is_server else goes_on}.", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        print("steerlens: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `steerlens list releases | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        _tell(error, debug)
        sys.exit(1)


class _Shown(logging.Formatter):
    """Lines in which what can't be seen is written as an escape: warnings quote others, too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        from steerlens.results.text import printable

        return printable(super().format(record))


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Print warnings on stderr, unless somebody says where they go (`hydra/job_logging=...`)."""
    logger, handler = logging.getLogger("steerlens"), logging.StreamHandler()
    if logger.handlers:
        yield
        return
    handler.setFormatter(_Shown())
    handler.addFilter(lambda _record: not logging.getLogger().handlers)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _end_in_order_at_sigterm() -> None:
    """Make SIGTERM an exception, so that what is finished is kept and the status says why.

    Another handler (a launcher's, say) stays. A second SIGTERM can't disturb the end.
    """

    def end(_signal: int, _frame: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)


def _dispatch(words: list[str]) -> int:
    """Do what `words` ask for, and return the exit code."""
    if any(word in HELP for word in words) or words[:1] == ["help"]:
        from steerlens.cli.help import help_text

        print(help_text(_topic(words)))
    elif "--version" in words:
        print(f"steerlens {importlib.metadata.version('steerlens')}")
    elif words and "=" not in words[0] and words[0][:1] not in "-+~":
        from steerlens.cli.verbs import run_verb

        run_verb(words[0], words[1:])
    else:
        return _hydra(words)
    return 0


def _topic(words: list[str]) -> str | None:
    """Return what help is asked for: the verb, or the word after `--help`; None = all in short."""
    from steerlens.cli.verbs import VERBS

    if words[0] in VERBS:
        return words[0]
    flags = [i for i, word in enumerate(words) if word in HELP]
    after = words[flags[0] + 1 :] if flags else words[1:]  # `steerlens help TOPIC`
    return next((word for word in after if not word.startswith("-")), None)


def _hydra(words: list[str]) -> int:
    """Check the overrides, then hand over to Hydra; 1 if a job failed."""
    from hydra.types import RunMode

    from steerlens.config.compose import for_hydra, left_open
    from steerlens.config.overrides import with_experiment

    args = _flags().parse_intermixed_args(words)
    args.overrides = overrides = with_experiment(args.overrides)
    if args.config_dir:
        if any(override.startswith("hydra.searchpath=") for override in overrides):
            raise SteerlensError("give either --config-dir or hydra.searchpath, not both.")
        # As an override, so that the check and every job of a multirun see the folder too.
        overrides.insert(0, f'hydra.searchpath=["file://{Path(args.config_dir).absolute()}"]')
    if args.shell_completion or args.hydra_help:
        return _run_hydra(args)
    show_only = bool(args.cfg or args.info)
    try:
        tree = _check(overrides, args.multirun, show_only)
    except SteerlensError as error:
        folder = _output_dir(overrides)
        if folder:
            from steerlens.results.status import note_failure

            note_failure(folder, error)
        raise
    is_sweep = args.multirun or tree.hydra.mode is RunMode.MULTIRUN  # of a file, too
    if is_sweep and not (show_only or tree.plan):
        return _sweep(args, tree)
    if not (is_sweep or show_only):
        return _run_hydra(args, tree)
    args.overrides = for_hydra(overrides, is_sweep)
    if show_only:
        args.overrides += left_open(tree)
        return _run_hydra(args)
    return _plan_sweep(args, Path(tree.hydra.sweep.dir))


def _plan_sweep(args: argparse.Namespace, folder: Path) -> int:
    """Return a multirun whose jobs are planned alone, of which nothing stays in `folder`."""
    from steerlens.config.overrides import override

    was_there = {path.name for path in folder.glob("*")}
    args.overrides.append(override("hydra.sweep.dir", str(folder)))
    try:
        return _run_hydra(args)
    finally:
        # Hydra's, without asking; a run in this folder would be refused as in somebody else's.
        if "multirun.yaml" not in was_there:
            (folder / "multirun.yaml").unlink(missing_ok=True)
        for empty in (*folder.glob("*/"), folder):
            with suppress(OSError):  # it isn't empty, or never was there
                empty.rmdir()


def _sweep(args: argparse.Namespace, tree: DictConfig) -> int:
    """Return a multirun, joined however it ends; 1 if a job isn't done."""
    from steerlens.config.compose import for_hydra, is_basic, swept_by_files
    from steerlens.config.overrides import override
    from steerlens.runs.sweep import begin, join_sweep

    sweep = begin(args.overrides, tree)
    if sweep.goes_on:
        print(f"The same command has been here: what is done in {sweep.folder} isn't run again.")
    if is_basic(tree):
        # Hydra would sweep over what an experiment's file says and the command line says otherwise.
        args.overrides += [*swept_by_files(tree, args.overrides), "hydra.sweeper.params=null"]
    args.overrides.append(override("hydra.sweep.dir", str(sweep.folder)))
    args.overrides = for_hydra(args.overrides, multirun=True)
    try:
        _run_hydra(args)
    finally:
        joined = join_sweep(sweep.folder, show=False)
    return 0 if joined.complete else 1


def _flags() -> argparse.ArgumentParser:
    """Return those of Hydra's flags that make sense here, so that a wrong one is told in a
    sentence.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SteerlensError(f"{message}; see `steerlens --help`.")


def _check(overrides: list[str], multirun: bool, show_only: bool) -> DictConfig:
    """Refuse what can be refused without a model, and a folder that can't be written.

    Of a multirun some jobs may be impossible: they will fail, and the others run. Gives what Hydra
    composes, of a multirun for its first job.
    """
    from steerlens.config.compose import compose_jobs, to_config
    from steerlens.results.status import refuse_foreign
    from steerlens.runs.preflight import check, tell_begin
    from steerlens.runs.subject_check import check_one_model
    from steerlens.storage.files import make_folder

    trees = compose_jobs(overrides, multirun)
    if show_only:
        return trees[0]
    if named := _output_dir(overrides):
        refuse_foreign(named)
    configs = [to_config(tree) for tree in trees]
    is_watched = sys.stderr.isatty()
    if is_watched:
        tell_begin(configs[0], is_sweep=multirun)
    refused = []
    for config in configs:
        try:
            check(config)
        except SteerlensError as error:
            refused.append(error)
    if len(refused) == len(configs):
        raise refused[0]
    check_one_model(configs)
    # The default folder carries the time at which Hydra composes, which is still to come.
    make_folder(named or Path(configs[0].paths.output_dir).parent)
    if not is_watched:  # where a refusal stays one sentence
        tell_begin(configs[0], is_sweep=multirun)
    return trees[0]


def _output_dir(overrides: list[str]) -> Path | None:
    """Return the run's folder if the command line names it."""
    from steerlens.config.overrides import parse

    for override in reversed(overrides):
        if override.lstrip("+").startswith("paths.output_dir="):
            with suppress(SteerlensError):
                value = parse([override])[0].value()
                return Path(str(value)) if value and "${" not in str(value) else None
    return None


def _run_hydra(args: argparse.Namespace, tree: DictConfig | None = None) -> int:
    """Hand over to Hydra; 1 if a job failed.

    Args:
        args: flags and overrides of Hydra's own command.
        tree: what they compose, if that is a single job.
    """
    import hydra

    from steerlens.config.compose import CONFIG, HYDRA_VERSION, run_composed
    from steerlens.config.entries import conf_dir
    from steerlens.config.resolvers import register

    failed: list[Exception] = []

    def task(tree: DictConfig) -> float | None:
        try:
            with _warnings_shown():  # in a launcher's process, which hasn't begun here
                return _job(tree)
        except Exception as error:  # not raised: Hydra goes on, and status.json says why
            _tell(error, bool(tree.get("debug")))
            failed.append(error)
            return None

    if tree is not None:
        run_composed(tree, task)
        return 1 if failed else 0
    register()
    # Hydra's own failures come to `main` as exceptions, instead of being printed with a traceback.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    arguments, sys.argv = sys.argv, [sys.argv[0], *_words(args)]
    try:
        run = hydra.main(str(conf_dir()), config_name=CONFIG, version_base=HYDRA_VERSION)
        run(task)()
    finally:
        sys.argv = arguments
    return 1 if failed else 0


def _words(args: argparse.Namespace) -> list[str]:
    """Return the arguments with the flags first: Hydra's parser wants the overrides in one
    piece.
    """
    words = []
    for name, value in vars(args).items():
        if value and name not in ("overrides", "config_dir"):
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    return [*words, *args.overrides]


def _job(tree: DictConfig) -> float | None:
    """Return one run, inside Hydra, perhaps in a launcher's own process; gives its objective."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from steerlens.config.compose import to_config
    from steerlens.results.status import LEFT_OUT, STATUS_FILE, note_failure, refuse_foreign
    from steerlens.runs.downloads import CachedPart, ask_hub_for_nothing, cached_part
    from steerlens.runs.preflight import check, tell_begin
    from steerlens.runs.sweep.jobs import start_job
    from steerlens.storage.files import write_json

    hydra = HydraConfig.get()
    config = to_config(tree, hydra)
    folder = Path(hydra.runtime.output_dir)
    config.paths.output_dir = str(folder)
    of_sweep = hydra.mode is RunMode.MULTIRUN and not config.plan
    part = CachedPart(config, None)
    if of_sweep and config.study.cached_only:
        ask_hub_for_nothing()
        part = cached_part(config)
    refuse_foreign(folder)
    if of_sweep:
        sweep_dir = Path(hydra.sweep.dir)
        config = part.config or config
        if start_job(folder, sweep_dir, config, hydra.overrides.task, part.missing):
            print(f"Job {hydra.job.num} is done already.")
            return _objective(folder)
        if part.config is None:
            print(f"Job {hydra.job.num} is left out: {part.missing}.")
            write_json(folder / STATUS_FILE, {"state": LEFT_OUT, "reason": part.missing})
            return None
        config.tracking.group = config.tracking.group or f"{config.name} {sweep_dir.name}"
    try:
        check(config)
    except Exception as error:
        note_failure(folder, error)
        raise
    if of_sweep and not sys.stderr.isatty():
        tell_begin(config)
    from steerlens.runs.run import run

    if not of_sweep:
        return run(config)
    try:
        return run(config, _weight_cache())
    except BaseException:
        _weight_cache().clear()  # it may be what there was no memory for
        raise


def _objective(folder: Path) -> float | None:
    """Return what a finished job has returned."""
    from steerlens.results import SUMMARY_FILE
    from steerlens.storage.files import read_json

    objective_of_job = (read_json(folder / SUMMARY_FILE) or {}).get("objective") or {}
    return objective_of_job.get("value")


@cache
def _weight_cache() -> WeightCache:
    """Return what the jobs of this process share."""
    from steerlens.engine.subject import WeightCache

    return WeightCache()


def _tell(error: Exception, debug: bool) -> None:
    """Print one sentence on stderr, or with `debug` the traceback."""
    from steerlens.results.text import printable

    if debug:
        lines = "".join(traceback.format_exception(error)).splitlines()
        print("\n".join(map(printable, lines)), file=sys.stderr)
        return
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = "memory ran out; close other programs, or ask for less at once."
    elif not isinstance(error, SteerlensError):
        text = f"{type(error).__name__}: {text}; run again with debug=true for the traceback."
    # Errors quote what others have written: file names, settings of an SAE, a server's answer.
    print(f"steerlens: {printable(text)}", file=sys.stderr)
