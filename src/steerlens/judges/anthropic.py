"""judge=anthropic: Anthropic's models, through Anthropic's own client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steerlens.config.judge import check_server, judge_key, key_variable
from steerlens.config.prices import base_url
from steerlens.config.schema import JudgeConfig
from steerlens.judges.chat import Answer, Conversation, Server, Unanswered, count
from steerlens.judges.deadline import EventLoop, limited_client
from steerlens.judges.rate import language_model_judge

if TYPE_CHECKING:
    from steerlens.judges import JudgeSettings
    from steerlens.judges.items import Judge
    from steerlens.judges.lexical import Lexicon


class AnthropicChat:
    """Messages of one model. The client repeats what fails, and is safe in threads."""

    batch = 1

    def __init__(self, config: JudgeConfig) -> None:
        import anthropic

        url = base_url(config)
        self.client = anthropic.AsyncAnthropic(
            http_client=limited_client(anthropic, config.timeout),
            api_key=judge_key(config),
            base_url=url,
            timeout=config.timeout,
            max_retries=config.retries,
        )
        self.workers = config.concurrency
        model = str(config.model)
        self._loop = EventLoop()
        self.server = Server(
            anthropic, self.client, self._loop, model, key_variable(config), config.timeout
        )
        self.identity: Mapping[str, Any] = {
            "judge": "anthropic",
            "model": model,
            "base_url": url,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        self._settings: dict[str, Any] = {"model": model, "max_tokens": config.max_tokens}
        if config.temperature is not None:
            # The client has no name for it, because the newest models take none.
            self._settings["extra_body"] = {"temperature": config.temperature}

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
        messages: Any = [turn._asdict() for turn in conversation]
        try:
            with self.server.asking():
                create = self.client.messages.create
                message = self._loop.run(create(messages=messages, **self._settings))
                usage = message.usage
                if usage is None:
                    raise ValueError("no usage")  # theirs always has one
                # Tokens that the server's own prompt cache wrote or read are counted apart.
                names = ("cache_creation_input_tokens", "cache_read_input_tokens")
                cached = [count(getattr(usage, name, None)) for name in names]
                fresh = count(getattr(usage, "input_tokens", None))
                return Answer(
                    text="".join(part.text for part in message.content if part.type == "text"),
                    input_tokens=None if fresh is None else fresh + sum(n or 0 for n in cached),
                    output_tokens=count(getattr(usage, "output_tokens", None)),
                    stopped=message.stop_reason,
                )
        except Unanswered as error:
            return error


def check(config: JudgeConfig) -> None:
    """Refuse settings that can't work: also a missing client, key or price."""
    check_server(config, "anthropic")


def load(settings: JudgeSettings, lexicon: Lexicon | None = None) -> Judge:
    """Give the judge of a run."""
    assert settings.judge is not None
    return language_model_judge(AnthropicChat(settings.judge), settings)
