"""`status.json`: the state of the run in a folder, and whose folder it is."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from steerlens.errors import SteerlensError, Terminated
from steerlens.results import FEATURES, SUMMARY_FILE
from steerlens.storage.files import (
    CONFIG_FILE,
    JOB_FILE,
    SWEEP_FILE,
    json_text,
    make_folder,
    read_json,
    remove_leftovers,
    write_json,
)
from steerlens.storage.provenance import now

STATUS_FILE = "status.json"

LEFT_OUT = "left out"
"""The state of a job of a sweep that its study does without; neither done nor failed."""

DIED = "died"
"""The state of a run that `status.json` calls running, and whose process is gone."""

MARKS = {
    STATUS_FILE: {"state"},
    JOB_FILE: {"sweep", "key"},
    SWEEP_FILE: {"id", "joined"},
    SUMMARY_FILE: {"compared"},
}
"""Files by which a folder is known as ours, and the keys of which one has to be in them."""

UNSEEN = {".DS_Store", "Thumbs.db", ".submitit", ".hydra"}
"""What file managers, launchers and Hydra leave in a folder that is empty otherwise."""

CLOCK_SLACK = 60
"""Seconds by which a process may seem to be younger than what it has written."""

BEAT, SILENT = 20, 180
"""Seconds between two signs of life of a run, and after which another machine believes it dead."""


def refuse_foreign(folder: Path) -> None:
    """Refuse to write into a folder that holds other things than a run, a sweep or a comparison.

    Raises:
        SteerlensError: `folder` isn't empty, and nothing in it says that it is ours.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.name not in UNSEEN)
    except OSError:  # not there, or refused where it is written
        return
    if not names or _is_ours(folder):
        return
    listing = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
    raise SteerlensError(
        f"{folder} isn't the folder of a run and isn't empty (it holds {listing}), so nothing is "
        f"written there; choose another one, paths.output_dir={folder / 'steerlens'}, say."
    )


def _is_ours(folder: Path) -> bool:
    if all((folder / name).is_file() for name in (CONFIG_FILE, FEATURES.file)):
        return True
    for name, keys in MARKS.items():
        content = read_json(folder / name)
        if isinstance(content, dict) and keys & set(content):
            return True
    return False


def read_status(folder: Path) -> dict[str, Any]:
    """Read the state of the run in `folder`; empty if there is none.

    What says `running` and has lost its process has `died`.
    """
    status = read_json(folder / STATUS_FILE)
    if not isinstance(status, dict):
        return {}
    if status.get("state") == "running" and _is_gone(status, folder / STATUS_FILE):
        why = f"its process {status.get('pid')} is gone without a word: it was killed"
        return {**status, "state": DIED, "reason": why}
    return status


def _is_gone(status: Mapping[str, Any], path: Path) -> bool:
    """Return whether the process that has written `status` into `path` surely runs no more."""
    pid = status.get("pid")
    if status.get("host", _host()) != _host():
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > SILENT
        return False
    if not isinstance(pid, int):
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        started = datetime.fromisoformat(str(status.get("started"))).timestamp()
        # After a restart of the machine its number may be that of another process.
        return process.create_time() > started + CLOCK_SLACK
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError):
        return False


def _host() -> str:
    return socket.gethostname()


def _is_own(status: Mapping[str, Any]) -> bool:
    """Return whether this process has written that `status` is running."""
    return (
        status.get("state") == "running"
        and status.get("pid") == os.getpid()
        and status.get("host") == _host()
    )


def begin(folder: Path, key: str | None = None) -> dict[str, Any]:
    """Write that a run begins in `folder`, and give what was written.

    Args:
        folder: made if it isn't there.
        key: of all that the run's results depend on; by default that with which this process has
            begun already.

    Returns:
        The content of `status.json`. It has `earlier`, the state of an earlier run, while that
        run's tables are still in the folder.

    Raises:
        SteerlensError: another process has a run under way there; the folder can't be written.
    """
    make_folder(folder)
    for written in (folder, folder / "figures"):
        remove_leftovers(written)
    old = read_status(folder)
    if old.get("state") == "running" and not _is_own(old):
        raise _under_way(folder, old)
    status = {"state": "running", "started": now(), "pid": os.getpid(), "host": _host()}
    if key := key or (old.get("key") if _is_own(old) else None):
        status["key"] = key
    if earlier := _earlier(folder, old):
        status["earlier"] = earlier
    write_json(folder / STATUS_FILE, status)
    if key is None:
        (folder / JOB_FILE).unlink(missing_ok=True)  # the results are no longer that job's
    return status


def _earlier(folder: Path, old: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of the run whose tables lie in `folder`; None if there are none."""
    if not (folder / FEATURES.file).is_file():
        return None
    if "earlier" in old:
        return old["earlier"]
    names = ("reason", "started", "finished", "key", "layers")
    return {
        "state": old.get("state", "done"),
        **{name: old[name] for name in names if name in old},
    }


def _under_way(folder: Path, status: Mapping[str, Any]) -> SteerlensError:
    who = f"process {status.get('pid', '?')}"
    if (host := status.get("host", _host())) != _host():
        who += f" on {host}, which was alive in the last {SILENT} seconds"
    return SteerlensError(
        f"a run is under way in {folder} ({who}); wait for it, or choose another folder with "
        "paths.output_dir=DIR."
    )


def note_failure(folder: Path, error: BaseException) -> None:
    """Write that a run was refused before it began.

    Not where that would hide a finished run or one that another process has under way, nor into a
    folder of somebody else's.
    """
    old = read_status(folder)
    if old.get("state") == "done" or (old.get("state") == "running" and not _is_own(old)):
        return
    with suppress(SteerlensError):  # the folder itself may be what was refused
        refuse_foreign(folder)
        status: dict[str, Any] = {"state": "failed", "reason": reason(error)}
        if earlier := _earlier(folder, old):
            status["earlier"] = earlier
        write_json(make_folder(folder) / STATUS_FILE, status)


class Status:
    """`with Status(folder):` creates the folder and keeps its `status.json` up to date.

    `running` from the start, `done` at the end; after an exception, which goes on its way,
    `interrupted` or `failed` with a reason. Only one run at a time gets into a folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._status: dict[str, Any] = {}
        self._lock = ExitStack()
        self._ended = threading.Event()

    @property
    def earlier(self) -> dict[str, Any] | None:
        """The state of the earlier run whose tables are in the folder."""
        return self._status.get("earlier")

    def __enter__(self) -> Status:
        make_folder(self.folder)
        self._lock.enter_context(_alone_in(self.folder))
        try:
            self._status = begin(self.folder)
        except BaseException:
            self._lock.close()
            raise
        threading.Thread(target=self._beat, name="status", daemon=True).start()
        return self

    def _beat(self) -> None:
        """Give signs of life to those who can't see the process."""
        while not self._ended.wait(BEAT):
            with suppress(OSError):
                os.utime(self.folder / STATUS_FILE)

    def expect(self, layers: int) -> None:
        """Write how many layers the run will have."""
        self._status["layers"] = layers
        write_json(self.folder / STATUS_FILE, self._status)

    def replaced(self) -> None:
        """Write that the tables in the folder are no longer those of an earlier run."""
        if self._status.pop("earlier", None):
            write_json(self.folder / STATUS_FILE, self._status)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        with self._lock:
            if error is None or (isinstance(error, SystemExit) and not error.code):
                self._finish({"state": "done"})
                return
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            # The disk may be full: whatever goes wrong now must not hide the error itself.
            with suppress(Exception):
                self._finish({"state": state, "reason": reason(error)})

    def _finish(self, end: dict[str, Any]) -> None:
        names = ("started", "key", "layers", "earlier")
        same = {name: self._status[name] for name in names if name in self._status}
        status = {**end, **same, "finished": now()}
        path = self.folder / STATUS_FILE
        try:
            write_json(path, status)
        except SteerlensError:
            # Written over the old text, it needs no new block of a full disk.
            data = json_text(status).encode()
            try:
                with path.open("r+b") as file:
                    file.write(data)
                    file.truncate()
            except OSError:
                pass
            else:
                return
            raise


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`; the lock goes with the process that holds it.

    Raises:
        SteerlensError: another process is in there.
    """
    try:
        import fcntl
    except ImportError:  # Windows: `status.json` alone has to do
        yield
        return
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(opened)
        raise _under_way(folder, read_status(folder)) from error
    except OSError:
        pass  # a file system without locks: `status.json` alone has to do
    try:
        yield
    finally:
        os.close(opened)


def reason(error: BaseException) -> str:
    """Say what went wrong, in one line."""
    if isinstance(error, Terminated):
        return "ended by SIGTERM"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = " ".join(str(error).split())
    if isinstance(error, SteerlensError):
        return text
    if len(text) > 300:
        text = text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
