"""The command, typed in this process: importing everything in another takes ten seconds."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from steerlens.cli import main


def steerlens(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `steerlens` with `words` in `folder`; give its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    at_sigterm = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HYDRA_FULL_ERROR", "1")  # set by `main`, so that it is undone here
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["steerlens", *words])
        with pytest.raises(SystemExit) as ended:
            main(words)
    signal.signal(signal.SIGTERM, at_sigterm)
    code = int(ended.value.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
