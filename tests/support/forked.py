"""Processes of their own in which everything is imported already, which takes ten seconds each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any

PRELOADED = ["sae_lens", "transformer_lens", "matplotlib.figure", "steerlens.runs.run"]
PRELOADED += ["steerlens.scores.scoring", "steerlens.steering.features", "steerlens.report.page"]
PRELOADED += ["tests.support.drawing"]


def start(work: Callable[..., object], *args: Any) -> ForkServerProcess:
    """Start a process that calls `work`, draws no figure, and computes with one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_undrawn, args=(work, *args))
    process.start()
    return process


def _undrawn(work: Callable[..., object], *args: Any) -> None:
    import torch

    from tests.support.drawing import undrawn

    torch.set_num_threads(1)
    with undrawn():
        work(*args)
