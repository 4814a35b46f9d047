"""judge=openai: any OpenAI-compatible server, through OpenAI's own client."""

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


class OpenAIChat:
    """Chat completions of one model. The client repeats what fails, and is safe in threads."""

    batch = 1

    def __init__(self, config: JudgeConfig) -> None:
        import openai

        url = base_url(config)
        self.client = openai.AsyncOpenAI(
            http_client=limited_client(openai, config.timeout),
            api_key=judge_key(config),
            base_url=url,
            timeout=config.timeout,
            max_retries=config.retries,
        )
        self.workers = config.concurrency
        model = str(config.model)
        self._loop = EventLoop()
        self.server = Server(
            openai, self.client, self._loop, model, key_variable(config), config.timeout
        )
        self.identity: Mapping[str, Any] = {
            "judge": "openai",
            "model": model,
            "base_url": url,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        # OpenAI's newer models take the one name alone, most other servers the other.
        limit = "max_completion_tokens" if url is None else "max_tokens"
        self._settings: dict[str, Any] = {"model": model, limit: config.max_tokens}
        if config.temperature is not None:
            self._settings["temperature"] = config.temperature

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
                create = self.client.chat.completions.create
                completion = self._loop.run(create(messages=messages, **self._settings))
                choice, usage = completion.choices[0], completion.usage
                return Answer(
                    text=str(choice.message.content or choice.message.refusal or ""),
                    input_tokens=count(getattr(usage, "prompt_tokens", None)),
                    output_tokens=count(getattr(usage, "completion_tokens", None)),
                    stopped=choice.finish_reason,
                )
        except Unanswered as error:
            return error


def check(config: JudgeConfig) -> None:
    """Refuse settings that can't work: also a missing client, key or price."""
    check_server(config, "openai")


def load(settings: JudgeSettings, lexicon: Lexicon | None = None) -> Judge:
    """Give the judge of a run."""
    assert settings.judge is not None
    return language_model_judge(OpenAIChat(settings.judge), settings)
