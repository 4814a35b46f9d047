"""`status.json`: whether a run's folder holds a finished run."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.files import json_text, make_folder, write_json

STATUS_FILE = "status.json"

LEFT_OUT = "left out"
"""The state of a job of a sweep that its study does without; neither done nor failed."""


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Status:
    """`with Status(folder):` creates the folder and keeps its `status.json` up to date.

    `running` from the start, `done` at the end, `failed` with a reason after an exception, which
    goes on its way. A file that says `running` with a `pid` that is gone belongs to a killed run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / STATUS_FILE
        self._started = now()

    def __enter__(self) -> Status:
        make_folder(self.path.parent)
        self._started = now()
        write_json(self.path, {"state": "running", "started": self._started, "pid": os.getpid()})
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self._finish({"state": "done"})
            return
        # The disk may be full: whatever goes wrong now must not hide the error itself.
        with suppress(Exception):
            self._finish({"state": "failed", "reason": reason(error)})

    def _finish(self, status: dict[str, Any]) -> None:
        status = {**status, "started": self._started, "finished": now()}
        try:
            write_json(self.path, status)
        except SteerlensError:
            # Written over the old text, it needs no new block of a full disk.
            data = json_text(status).encode()
            try:
                with self.path.open("r+b") as file:
                    file.write(data)
                    file.truncate()
            except OSError:
                pass
            else:
                return
            raise


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = " ".join(str(error).split())
    if isinstance(error, SteerlensError):
        return text
    if len(text) > 300:
        text = text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
