"""What answers cost: an estimate before, a count after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steerlens.config.prices import Price
from steerlens.judges.chat import Answer, Conversation

BYTES_PER_TOKEN = 4
"""Of English text, about."""
USUAL_ANSWER = 80
"""Tokens, about, of the one or two sentences that the prompts ask for."""
OVERHEAD = 64
"""Tokens, at most, that a server's own template adds to a conversation."""


@dataclass
class Cost:
    """What has been asked and what it cost, the cache's answers included."""

    requests: int = 0
    """Answers, those of earlier starts included."""
    from_cache: int = 0
    """Of them, those that the cache had."""
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = 0.0
    """None where the price isn't known."""
    usd_now: float | None = 0.0
    """Of it, what wasn't in the cache."""

    def plus(self, more: Cost) -> Cost:
        """Add up two counts; of what isn't known in one of them, the sum isn't known."""

        def sum_of(usd: float | None, usd_more: float | None) -> float | None:
            return None if usd is None or usd_more is None else usd + usd_more

        return Cost(
            self.requests + more.requests,
            self.from_cache + more.from_cache,
            self.input_tokens + more.input_tokens,
            self.output_tokens + more.output_tokens,
            sum_of(self.usd, more.usd),
            sum_of(self.usd_now, more.usd_now),
        )

    def add(self, tokens: tuple[int, int], price: Price | None, from_cache: bool) -> None:
        """Count an answer of `tokens` read and written."""
        self.requests += 1
        self.from_cache += from_cache
        self.input_tokens += tokens[0]
        self.output_tokens += tokens[1]
        if price is None or self.usd is None or self.usd_now is None:
            self.usd = self.usd_now = None
            return
        usd = price.usd(*tokens)
        self.usd += usd
        self.usd_now += 0.0 if from_cache else usd


class Estimate(NamedTuple):
    """What some ratings will take."""

    ratings: int
    from_cache: int
    """Answers that the cache has."""
    requests: int
    """Answers to ask for; those that can't be read, and are asked for again, come on top."""
    input_tokens: int
    output_tokens: int
    usd: float | None
    """Of the requests; None where the price isn't known."""
    usd_at_most: float | None
    """If every answer is as long as it may be."""

    def sentence(self) -> str:
        """Return the estimate in words."""
        money = "at an unknown price"
        if self.usd is not None and self.usd_at_most is not None:
            money = f"about {self.usd:,.2f} USD, at most {self.usd_at_most:,.2f}"
        return (
            f"{self.ratings:,} ratings: {self.from_cache:,} answers are kept, {self.requests:,} to "
            f"ask for, about {self.input_tokens + self.output_tokens:,} tokens, {money}."
        )


def usual_tokens(conversation: Conversation) -> int:
    """Return tokens in a conversation, about."""
    return sum(len(message.content.encode()) for message in conversation) // BYTES_PER_TOKEN + 1


def tokens_at_most(conversation: Conversation) -> int:
    """Return a token stands for at least a byte."""
    return sum(len(message.content.encode()) for message in conversation) + OVERHEAD


def tokens_of(answer: Answer, conversation: Conversation, max_tokens: int) -> tuple[int, int]:
    """Return tokens read and written; where the server doesn't say, as many as there can have
    been.
    """
    read, written = answer.input_tokens, answer.output_tokens
    return (
        tokens_at_most(conversation) if read is None else read,
        max_tokens if written is None else written,
    )


def estimate(
    ratings: int,
    from_cache: int,
    to_ask: Sequence[Conversation],
    price: Price | None,
    max_tokens: int,
) -> Estimate:
    """Return what `to_ask` will take beside the answers that are kept."""
    read, written = sum(map(usual_tokens, to_ask)), len(to_ask) * min(USUAL_ANSWER, max_tokens)
    return Estimate(
        ratings=ratings,
        from_cache=from_cache,
        requests=len(to_ask),
        input_tokens=read,
        output_tokens=written,
        usd=price and price.usd(read, written),
        usd_at_most=price and price.usd(sum(map(tokens_at_most, to_ask)), len(to_ask) * max_tokens),
    )
