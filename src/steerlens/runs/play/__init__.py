"""`steerlens play`: a subject loaded once, and texts written with its features as they are asked.

The part that knows the model; `report.play` is page and transport.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from steerlens.config.compose import compose, read_config
from steerlens.config.schema import RunConfig
from steerlens.config.settings import parse_settings
from steerlens.errors import SteerlensError, unknown
from steerlens.report.play.page import write_play_page
from steerlens.report.play.server import (
    address_of,
    is_loopback,
    make_server,
    new_token,
    open_socket,
)
from steerlens.report.terminal import phase
from steerlens.results.folder import RunTables, read_tables, unfinished
from steerlens.runs.play.player import load_player
from steerlens.runs.preflight import check, tell_begin
from steerlens.runs.run import refuse_unloadable

PORT, HOST = 8765, "127.0.0.1"

SUBJECT_KEYS = (
    *("model", "sae", "subject", "layer", "device", "dtype", "device_map", "memory_budget", "seed"),
    *("steer", "generation", "labels", "paths", "debug", "hydra"),
)
"""What `steerlens play` reads of the configuration; the rest is refused."""

TRIED = ("steer=grid", "generation.stop=null", "generation.chat_template=auto")
"""How texts are written unless something else is asked for: as `steerlens concept=WORD` does."""


@dataclass(frozen=True)
class Typed:
    """What was typed behind `steerlens play`."""

    run: Path | None
    overrides: tuple[str, ...]
    host: str
    port: int


def play(arguments: Sequence[str]) -> None:
    """Serve the page of a run, or of a subject's features, with a card that steers.

    Args:
        arguments: perhaps the folder of a run, `port=`, `host=`, and without a folder overrides.

    Raises:
        SteerlensError: for what isn't there, doesn't fit, or can't be had, in one sentence.
    """
    typed = parse_arguments(arguments)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise SteerlensError(
            f"steerlens play needs {' and '.join(missing)}, of the extra `play`: pip install "
            f"{' '.join(missing)}."
        )
    config, tables = _what_is_played(typed)
    check(config)
    settings = parse_settings(config)
    refuse_unloadable(settings)
    with open_socket(typed.host, typed.port) as bound, tempfile.TemporaryDirectory() as folder:
        tell_begin(config)
        player = load_player(config, settings, tables, Path(folder) / "texts")
        token = new_token()
        with phase("writing the page"):
            title = f"{config.model.title} with {config.sae.title}"
            write_play_page(player.tables, player.live, title, typed.run, Path(folder))
        if not is_loopback(typed.host):
            print(
                f"Warning: whoever reaches {typed.host} and knows this address can use the model, "
                "and nothing on the way is encrypted.",
                file=sys.stderr,
            )
        print(f"Open {address_of(bound, token)} (Ctrl-C ends it)", flush=True)
        make_server(player.bench, Path(folder), bound, token).run(sockets=[bound])


def parse_arguments(arguments: Sequence[str]) -> Typed:
    """Return what was typed.

    Raises:
        SteerlensError: it makes no sense, in one sentence.
    """
    run, overrides = None, []
    settings = {"host": HOST, "port": str(PORT)}
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals:
            if run is not None:
                raise SteerlensError(f"steerlens play shows one run, not both {run} and {word}.")
            run = Path(word)
        elif key in settings:
            settings[key] = value
        else:
            first = key.lstrip("+~").partition(".")[0].partition("@")[0]
            if first not in SUBJECT_KEYS:
                raise unknown("setting of steerlens play", first, [*SUBJECT_KEYS, *settings])
            overrides.append(word)
    port = settings["port"]
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise SteerlensError(f"port={port} is no port; ports are 0 (any) to 65535.")
    if run is not None and overrides:
        raise SteerlensError(
            f"{overrides[0]} can't go with a run's folder, whose settings are the run's; leave one "
            "of them out."
        )
    return Typed(run, tuple(overrides), settings["host"], int(port))


def _what_is_played(typed: Typed) -> tuple[RunConfig, RunTables | None]:
    """Return the settings, and the tables where there is a run."""
    if typed.run is None:
        return compose([*TRIED, *typed.overrides]), None
    if not typed.run.is_dir():
        raise SteerlensError(f"there is no folder {typed.run}.")
    tables = replace(read_tables(typed.run), unfinished=unfinished(typed.run))
    if tables.features.empty:
        raise SteerlensError(f"the run in {typed.run} has no feature to steer with.")
    of_run, usual = read_config(typed.run), compose(["steer=grid"])
    # What the run asks for besides its subject and its texts isn't carried out again.
    names = (
        *("model", "sae", "layer", "seed", "device", "dtype", "device_map", "memory_budget"),
        *("corpus", "generation"),
    )
    config = replace(usual, **{name: getattr(of_run, name) for name in names})
    cache = replace(usual.paths, cache_dir=of_run.paths.cache_dir)
    steer = usual.steer if of_run.steer.factors is None else of_run.steer
    return replace(config, steer=steer, paths=cache), tables
