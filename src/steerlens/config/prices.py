"""Where a judge's model is asked, and what a token costs there."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from steerlens.config.schema import JudgeConfig

PRICES_FILE = Path(__file__).with_name("prices.json")


class Price(NamedTuple):
    """US dollars for a million tokens."""

    input: float
    output: float
    listed_on: str | None = None
    """The day on which the list price was this; None if the settings say it."""

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Return what so many tokens cost, in US dollars."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


FREE = Price(0.0, 0.0)


def variable_of(judge: JudgeConfig, name: str) -> str:
    """Return the environment's variable of a judge: OPENAI_API_KEY, of whose servers it asks."""
    return f"{judge.name.upper().replace('-', '_')}_{name}"


def base_url(judge: JudgeConfig) -> str | None:
    """Return the server that is asked instead of the client's own, if any."""
    return judge.base_url or os.environ.get(variable_of(judge, "BASE_URL")) or None


@cache
def _prices() -> dict[str, Price]:
    content = json.loads(PRICES_FILE.read_text(encoding="utf-8"))
    return {name: Price(**price) for name, price in content.items()}


def price_of(config: JudgeConfig) -> Price | None:
    """Return the price of the judge's model; None if it isn't known.

    From the settings; else free where no server is asked; else the list price of the model, a date
    behind its name left out. Somebody else's server may charge anything.
    """
    if config.usd_per_million_input is not None and config.usd_per_million_output is not None:
        return Price(config.usd_per_million_input, config.usd_per_million_output)
    if config.name in ("lexical", "local"):
        return FREE
    if base_url(config) is not None:
        return None
    return _prices().get(re.sub(r"-(\d{8}|\d{4}-\d\d-\d\d)$", "", config.model or ""))
