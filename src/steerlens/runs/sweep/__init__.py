"""A multirun as one thing: its folder, its jobs, and their joined result.

`begin` and `join` frame a sweep; every job keeps a `job.json` in its folder beside what a run
leaves there. Nothing here needs torch.
"""

from __future__ import annotations

from steerlens.runs.sweep.begin import Sweep, begin
from steerlens.runs.sweep.join import Joined, is_sweep, join, join_sweep

__all__ = ["Joined", "Sweep", "begin", "is_sweep", "join", "join_sweep"]
