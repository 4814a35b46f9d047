"""judge=openai: any OpenAI-compatible server, through OpenAI's own client."""

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


class OpenAIChat(ServedChat):
    """Chat completions of one model."""

    def __init__(self, config: JudgeConfig) -> None:
        import openai

        super().__init__(config, openai, openai.AsyncOpenAI)
        # OpenAI's newer models take the one name alone, most other servers the other.
        is_openais = self.identity["base_url"] is None
        limit = "max_completion_tokens" if is_openais else "max_tokens"
        self._settings: dict[str, Any] = {"model": self.model, limit: config.max_tokens}
        if config.temperature is not None:
            self._settings["temperature"] = config.temperature

    def request(self, messages: list[dict[str, str]]) -> Coroutine[Any, Any, Any]:
        """Return a request for a chat completion."""
        return self.client.chat.completions.create(messages=messages, **self._settings)

    def read(self, reply: Any) -> Answer:
        """Read the first choice."""
        choice, usage = reply.choices[0], reply.usage
        return Answer(
            text=str(choice.message.content or choice.message.refusal or ""),
            input_tokens=count(getattr(usage, "prompt_tokens", None)),
            output_tokens=count(getattr(usage, "completion_tokens", None)),
            stopped=choice.finish_reason,
        )


def check(config: JudgeConfig) -> None:
    """Refuse settings that can't work: also a missing client, key or price."""
    check_server(config, "openai")


def load(settings: JudgeSettings, lexicon: Lexicon | None = None) -> Judge:
    """Give the judge of a run."""
    assert settings.judge is not None
    return language_model_judge(OpenAIChat(settings.judge), settings)
