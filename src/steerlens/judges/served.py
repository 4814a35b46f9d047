"""Models behind a server, through its maker's own client: what may go wrong, and in which words."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from steerlens.config.judge import judge_key, key_variable
from steerlens.config.prices import base_url
from steerlens.config.schema import JudgeConfig
from steerlens.errors import SteerlensError, unknown
from steerlens.judges.chat import Answer, Conversation, Unanswered
from steerlens.judges.deadline import EventLoop, limited_client

logger = logging.getLogger(__name__)


class ServedChat(ABC):
    """A model behind a server. The client repeats what fails, and is safe in threads."""

    batch = 1

    def __init__(self, config: JudgeConfig, sdk: Any, client_class: Any) -> None:
        """Make the client.

        Args:
            config: which model, at which address, how it is asked.
            sdk: the client's package.
            client_class: its asynchronous client.
        """
        url = base_url(config)
        self.client = client_class(
            http_client=limited_client(sdk, config.timeout),
            api_key=judge_key(config),
            base_url=url,
            timeout=config.timeout,
            max_retries=config.retries,
        )
        self.workers = config.concurrency
        self.model = str(config.model)
        self._loop = EventLoop()
        self.server = Server(
            sdk, self.client, self._loop, self.model, key_variable(config), config.timeout
        )
        self.identity: Mapping[str, Any] = {
            "judge": config.name,
            "model": self.model,
            "base_url": url,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }

    @abstractmethod
    def request(self, messages: list[dict[str, str]]) -> Coroutine[Any, Any, Any]:
        """Return the client's request for an answer to `messages`."""

    @abstractmethod
    def read(self, reply: Any) -> Answer:
        """Read the answer in what the client returns.

        Raises:
            ValueError, TypeError, AttributeError, IndexError, KeyError: it is no answer.
        """

    def check(self) -> None:
        """Refuse settings that can't work; see `Chat`."""
        self.server.check()

    def abandon(self) -> None:
        """Give up what is under way."""
        self._loop.end()

    def answers(self, conversations: Sequence[Conversation]) -> list[Answer | Unanswered]:
        """Return an answer to each conversation, or why there is none."""
        return [self._answer(conversation) for conversation in conversations]

    def _answer(self, conversation: Conversation) -> Answer | Unanswered:
        try:
            with self.server.asking():
                return self.read(
                    self._loop.run(self.request([turn._asdict() for turn in conversation]))
                )
        except Unanswered as error:
            return error


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
