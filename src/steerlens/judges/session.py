"""The judge of a whole run: what all its ratings have cost so far, within one budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steerlens.judges.cost import Cost
from steerlens.judges.items import Item, Judge, Rated

if TYPE_CHECKING:
    from steerlens.engine.run_context import RunContext


@dataclass
class RatingSession:
    """A run's judge, and what it has taken so far."""

    judge: Judge | None
    """None for judge=lexical, which first has to see a subject's unsteered texts."""
    cost: Cost = field(default_factory=Cost)
    stopped: str | None = None
    """Why ratings are missing that weren't asked for."""

    def rate(self, judge: Judge, items: Sequence[Item], ctx: RunContext, where: str) -> Rated:
        """Rate `items` with what is left of the budget, and count what that takes.

        Args:
            judge: the session's own, or a subject's lexical one.
            items: what is rated.
            ctx: shows the progress.
            where: begins the lines that the user sees.

        Raises:
            SteerlensError: nothing can be asked any more.
        """
        estimate = judge.estimate(items)
        if estimate.requests:
            print(f"{where}, {judge.name}: {estimate.sentence()}")
        with ctx.task(estimate.ratings, f"{where}: {judge.name}", "ratings") as advance:
            rated = judge.rate(items, advance, self.cost.usd or 0.0)
        self.stopped = self.stopped or rated.stopped
        self.cost = self.cost.plus(rated.cost)
        return rated

    def sentence(self) -> str | None:
        """Say what was asked and paid for; None if no model was asked."""
        if not self.cost.requests or self.judge is None:
            return None
        money = "at an unknown price" if self.cost.usd is None else f"{self.cost.usd:,.2f} USD"
        now = "" if self.cost.usd_now is None else f", {self.cost.usd_now:,.2f} of it now"
        return (
            f"{self.judge.name}: {self.cost.requests:,} answers, {self.cost.from_cache:,} of them "
            f"kept from before, {money}{now}."
        )
