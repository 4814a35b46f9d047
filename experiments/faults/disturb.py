"""Faults: what is done to the process that runs a command, or to the cache that it finds."""

from __future__ import annotations

import errno
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import steerlens

PACKAGE = str(Path(steerlens.__file__).parent)
FRAMES = 4
"""Functions of ours, from the innermost outward, that tell one place that writes from another."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def at_rename(number: int, is_after: bool, by: signal.Signals) -> Callable[[], None]:
    """Give what makes a process send itself `by` before or after its rename of that number."""

    def disturb() -> None:
        done = 0

        def around(rename: Callable[..., None]) -> Callable[..., None]:
            def renaming(*args: Any, **settings: Any) -> None:
                nonlocal done
                done += 1
                if done - 1 != number:
                    rename(*args, **settings)
                    return
                if is_after:
                    rename(*args, **settings)
                os.kill(os.getpid(), by)
                if not is_after:
                    rename(*args, **settings)

            return renaming

        os.replace, os.rename = around(os.replace), around(os.rename)

    return disturb


def noting_renames(log: Path) -> Callable[[], None]:
    """Give what makes a process write a line into `log` for each of its renames."""

    def disturb() -> None:
        notes = log.open("a", buffering=1)

        def around(rename: Callable[..., None]) -> Callable[..., None]:
            def renaming(source: Any, target: Any, **settings: Any) -> None:
                rename(source, target, **settings)
                notes.write(f"{target}\n")

            return renaming

        os.replace, os.rename = around(os.replace), around(os.rename)

    return disturb


def noting_places(folder: Path, log: Path) -> Callable[[], None]:
    """Give what makes a process write a line into `log` for each write in `folder`: its place."""

    def disturb() -> None:
        notes = log.open("a", buffering=1)

        def note(place: str, _path: str) -> None:
            notes.write(f"{place}\n")

        _at_writes(folder, note)

    return disturb


def full_from(place: str, folder: Path) -> Callable[[], None]:
    """Give what makes the disk of `folder` full for a process once it writes at `place`."""

    def disturb() -> None:
        is_full = False

        def refuse(here: str, path: str) -> None:
            nonlocal is_full
            is_full = is_full or here == place
            if is_full:
                raise OSError(errno.ENOSPC, "No space left on device", path)

        _at_writes(folder, refuse)

    return disturb


def _at_writes(folder: Path, act: Callable[[str, str], None]) -> None:
    """Call `act` with the place and the path before each file or folder under `folder` is made."""
    root = f"{folder.resolve()}{os.sep}"

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.mkdir") or not isinstance(args[0], str | os.PathLike | bytes):
            return
        if event == "open":
            mode, flags = args[1] or "", args[2] or 0
            if not (set(mode) & set("wax+") or flags & WRITES):
                return
        path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100
        if path.startswith(root) and (place := _place()):
            act(place, path)

    sys.addaudithook(hook)


def _place() -> str:
    """Name the innermost functions of steerlens that are running."""
    names: list[str] = []
    frame = sys._getframe(2)
    while frame is not None and len(names) < FRAMES:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            names.append(f"{file.removeprefix(PACKAGE)}:{frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(names)


def without_wandb() -> None:
    """Make W&B a library that isn't installed."""
    modules: dict[str, Any] = dict(sys.modules)
    for name in modules:
        if name.partition(".")[0] == "wandb":
            del sys.modules[name]
    sys.modules["wandb"] = None  # type: ignore[assignment]


def with_failing_wandb(at: str) -> Callable[[], None]:
    """Give what makes W&B raise when its function `at` is called."""

    class Run:
        def __init__(self) -> None:
            self.summary: dict[str, Any] = {}

        def __getattr__(self, name: str) -> Any:
            def call(*_args: Any, **_settings: Any) -> Any:
                if name == at:
                    raise ConnectionError(f"{name}: the server is gone")
                return self

            return call

    def disturb() -> None:
        fake: Any = types.ModuleType("wandb")
        run = Run()
        settings = {"model_fields": {}, "__init__": lambda *_args, **_settings: None}
        fake.Settings = type("Settings", (), settings)
        fake.init = run.init
        fake.Histogram = fake.Table = fake.Image = run.show
        sys.modules["wandb"] = fake

    return disturb


DAMAGES = ("truncated", "flipped", "emptied", "foreign")


def cache_groups(cache: Path) -> dict[str, list[Path]]:
    """Group the files of a cache by their folder at the top and their ending."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(path for path in cache.rglob("*") if path.is_file()):
        path = file.relative_to(cache)
        groups.setdefault(f"{path.parts[0]}/*{file.suffix}", []).append(path)
    return groups


def damage(cache: Path, files: Sequence[Path], how: str, draw: Random) -> None:
    """Damage `files`, which are relative to `cache`: `how` is one of `DAMAGES`."""
    contents = {file: (cache / file).read_bytes() for file in files}
    for index, file in enumerate(files):
        content = contents[file]
        if how == "truncated":
            content = content[: draw.randrange(len(content))]
        elif how == "flipped":
            at = draw.randrange(len(content))
            content = (
                content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
            )
        elif how == "emptied":
            content = b""
        else:
            another = contents[files[index - 1]]
            content = draw.randbytes(len(content)) if another == content else another
        (cache / file).write_bytes(content)
