"""What work on a subject knows of its run: it can't be changed, but for what a group computes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from steerlens.engine.run_context import RunContext


def test_a_group_begins_with_nothing_computed_in_the_same_run() -> None:
    ctx = RunContext(memory_budget=5, seed=3)
    ctx.cache.null_scores["blocks.1.hook_resid_post", "settings"] = [0.5]
    other = ctx.for_group()
    assert (other.memory_budget, other.seed) == (5, 3)
    assert other.cache.null_scores == {}
    assert ctx.cache.null_scores
    with pytest.raises(FrozenInstanceError):
        ctx.seed = 4  # type: ignore[misc]
