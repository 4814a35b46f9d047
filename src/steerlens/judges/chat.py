"""Asking a language model, whoever runs it: what a conversation is, and how asking can fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from steerlens.errors import SteerlensError, unknown

if TYPE_CHECKING:
    from steerlens.judges.deadline import EventLoop

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Server:
    """The server behind an official client, for the sentences on what is wrong with it."""

    sdk: Any
    """The client's package. Those of OpenAI and Anthropic have one set of exceptions."""
    client: Any
    """Its asynchronous one."""
    loop: EventLoop
    """In which the client is used."""
    model: str
    key_variable: str
    timeout: float

    @property
    def url(self) -> str:
        """Give the address that requests go to."""
        return str(self.client.base_url)

    def check(self) -> None:
        """Refuse a key that isn't accepted, a model that isn't there, a server that is silent."""
        with self._refusals():
            names = self._models()
        if names is None:
            logger.warning(
                "%s lists no models, so judge.model=%s can't be checked; is judge.base_url right? "
                "It usually ends in /v1.",
                self.url,
                self.model,
            )
            return
        if self.model in names:
            return
        try:
            with self._refusals():
                # An alias needn't be listed.
                self.loop.run(self.client.models.retrieve(self.model))
        except (self.sdk.APIStatusError, *_BROKEN):
            raise unknown(f"judge.model at {self.url}", self.model, names) from None

    def _models(self) -> list[str] | None:
        """Return the models that the server lists; None if it lists none."""
        try:
            return self.loop.run(self._listed()) or None
        except (self.sdk.NotFoundError, *_BROKEN):
            return None

    async def _listed(self) -> list[str]:
        return [model.id async for model in self.client.models.list()]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn what no other request would survive into a sentence."""
        try:
            yield
        except (self.sdk.AuthenticationError, self.sdk.PermissionDeniedError) as error:
            raise SteerlensError(
                f"{self.url} refuses the key in {self.key_variable}: {_words(error)}."
            ) from error
        except self.sdk.APIConnectionError as error:
            raise SteerlensError(
                f"no judge answers at {self.url} ({_words(error)}); start it, or correct "
                "judge.base_url."
            ) from error

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around one request, which the client has already repeated as often as it may.

        Raises:
            Unanswered: this request failed.
            SteerlensError: all would fail.
        """
        try:
            yield
        except (self.sdk.AuthenticationError, self.sdk.PermissionDeniedError):
            with self._refusals():
                raise
        except self.sdk.NotFoundError as error:
            self.check()  # says so if it's the model that isn't there
            raise SteerlensError(
                f"{self.url} doesn't know what is asked of it ({_words(error)}); is "
                "judge.base_url right? It usually ends in /v1."
            ) from error
        except self.sdk.APITimeoutError as error:
            raise Unanswered(f"no answer within judge.timeout={self.timeout:g} seconds") from error
        except self.sdk.APIConnectionError as error:
            raise Unanswered(f"no connection to {self.url}") from error
        except self.sdk.APIStatusError as error:
            raise Unanswered(f"{error.status_code}: {_words(error)}") from error
        except (self.sdk.APIError, *_BROKEN) as error:
            raise Unanswered(f"what came isn't an answer ({type(error).__name__})") from error


_BROKEN = (ValueError, TypeError, AttributeError, IndexError, KeyError)
"""What the clients' objects raise when a server sends something else than it should."""


def _words(error: Exception) -> str:
    """Return the server's own words, in one line and short."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else body
    message = inner.get("message") if isinstance(inner, dict) else None
    text = " ".join(str(message or error).split()).rstrip(".")
    return text[:200] or type(error).__name__
