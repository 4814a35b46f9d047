"""judge=anthropic: Anthropic's models, through Anthropic's own client."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from steerlens.config.judge import check_server
from steerlens.config.schema import JudgeConfig
from steerlens.judges.chat import Answer, count
from steerlens.judges.rate import language_model_judge
from steerlens.judges.served import ServedChat

if TYPE_CHECKING:
    from steerlens.judges import JudgeSettings
    from steerlens.judges.items import Judge
    from steerlens.judges.lexical import Lexicon


class AnthropicChat(ServedChat):
    """Messages of one model."""

    def __init__(self, config: JudgeConfig) -> None:
        import anthropic

        super().__init__(config, anthropic, anthropic.AsyncAnthropic)
        self._settings: dict[str, Any] = {"model": self.model, "max_tokens": config.max_tokens}
        if config.temperature is not None:
            # The client has no name for it, because the newest models take none.
            self._settings["extra_body"] = {"temperature": config.temperature}

    def request(self, messages: list[dict[str, str]]) -> Coroutine[Any, Any, Any]:
        """Return a request for a message."""
        return self.client.messages.create(messages=messages, **self._settings)

    def read(self, reply: Any) -> Answer:
        """Read the message's text; of its tokens also those that were read from a cache."""
        usage = reply.usage
        if usage is None:
            raise ValueError("no usage")  # theirs always has one
        # Tokens that the server's own prompt cache wrote or read are counted apart.
        names = ("cache_creation_input_tokens", "cache_read_input_tokens")
        cached = [count(getattr(usage, name, None)) for name in names]
        fresh = count(getattr(usage, "input_tokens", None))
        return Answer(
            text="".join(part.text for part in reply.content if part.type == "text"),
            input_tokens=None if fresh is None else fresh + sum(n or 0 for n in cached),
            output_tokens=count(getattr(usage, "output_tokens", None)),
            stopped=reply.stop_reason,
        )


def check(config: JudgeConfig) -> None:
    """Refuse settings that can't work: also a missing client, key or price."""
    check_server(config, "anthropic")


def load(settings: JudgeSettings, lexicon: Lexicon | None = None) -> Judge:
    """Give the judge of a run."""
    assert settings.judge is not None
    return language_model_judge(AnthropicChat(settings.judge), settings)
