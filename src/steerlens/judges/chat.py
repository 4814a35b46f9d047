"""Asking a language model, whoever runs it: what a conversation is, and how asking can fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Message(NamedTuple):
    """A turn of a conversation."""

    role: str
    """user or assistant."""
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class Answer:
    """What a model has answered."""

    text: str
    input_tokens: int | None
    """None where the server doesn't say."""
    output_tokens: int | None
    stopped: str | None = None
    """Why it ended, in the server's word."""


MOST_TOKENS = 2**40
"""More than any request can have read or written."""


def count(tokens: Any) -> int | None:
    """Return the number of tokens that a server tells; None if what it tells is no number of
    tokens.
    """
    sound = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < MOST_TOKENS
    return tokens if sound else None


class Unanswered(Exception):
    """This conversation has no answer; others may have one."""


class TooLong(Unanswered):
    """It can't have one, whoever is asked how often; that says nothing of the judge's state."""


class Chat(Protocol):
    """A language model that can be asked."""

    identity: Mapping[str, Any]
    """All that an answer depends on beside the conversation."""
    workers: int
    """Threads that may ask at once."""
    batch: int
    """Conversations that one of them asks together."""

    def check(self) -> None:
        """Refuse a key, model or server that can't work. Costs nothing."""
        ...

    def answers(self, conversations: Sequence[Conversation]) -> list[Answer | Unanswered]:
        """Return one answer for each conversation, at most `batch` of them.

        Raises:
            SteerlensError: no other conversation would be answered either.
            CancelledError: another thread has abandoned it.
        """
        ...

    def abandon(self) -> None:
        """End what is being asked at once, from another thread than those that ask."""
        ...
