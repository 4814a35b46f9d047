"""`steerlens play`: the page of a run, served to this machine, with a card that steers.

What generates is given as plain functions (`Bench`): this room knows no model. `requests` says what
a client may ask for and how much, `queue` carries it out one after the other, `server` is the
transport and decides who may ask at all, `page` makes the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerlens.report.page.contents import Segment
from steerlens.report.play.requests import Writing

Event = Mapping[str, Any]
"""What a client is told, a line of JSON."""

Tell = Callable[[Event], None]
"""Tells it; raises `queue.Left` where the client has left."""


@dataclass(frozen=True)
class Text:
    """A text as far as it has come."""

    factor: float
    segments: Sequence[Segment]
    kl: float | None
    """KL of the first steered next-token distribution from the unsteered one, in nats."""
    success: int | None = None
    """How many of its tokens are logit-lens tokens of the first feature; null until it is whole."""
    perplexity: float | None = None
    stopped_by: str | None = None


@dataclass(frozen=True)
class Match:
    """A feature that may stand for a concept."""

    layer: int
    feature: int
    tokens: Sequence[str]
    """Its tokens that stand for the concept."""
    output_score: float | None


@dataclass(frozen=True)
class Live:
    """What the page has to know to ask."""

    layers: Sequence[int]
    has_template: bool
    chat_template: bool
    prompt: str
    operators: Sequence[str]
    operator: str
    positions: Sequence[str]
    position: str
    factors: Sequence[float]
    """Those that are written at once."""
    max_new_tokens: int
    temperature: float
    seed: int
    limits: Mapping[str, int]


@dataclass(frozen=True)
class Bench:
    """What carries requests out."""

    write: Callable[[Writing, Tell], None]
    """Write texts, telling them while they grow; on the queue's thread."""
    find: Callable[[str], Sequence[Match]]
    """Find features that may stand for a concept."""
    vector: Callable[[Writing], tuple[str, bytes]]
    """Export what is steered with at the first factor: a file's name and content."""
