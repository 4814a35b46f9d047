"""Ratings of texts by a judge: 0, 1 or 2 for concept, instruction and fluency.

| `judge=` | who rates | what it costs |
|---|---|---|
| `lexical` | no model: words of the concept, perplexity, repetition; no instruction | nothing |
| `openai` | any OpenAI-compatible server, hosted or your own | by token, or nothing |
| `anthropic` | Anthropic's models | by token |
| `local` | a Hugging Face model in this process | nothing |

All have one interface, `items.Judge`. A rating that can't be had is missing, counted, with why; it
is never silently 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steerlens.config.schema import JudgeConfig, PathsConfig
from steerlens.errors import SteerlensError
from steerlens.judges.items import ASPECTS, Item, Judge, Rated, Rating

if TYPE_CHECKING:
    from steerlens.judges.chat import Chat
    from steerlens.judges.lexical import Lexicon

__all__ = ["ASPECTS", "Item", "Judge", "Rated", "Rating", "load_judge"]


class JudgeSettings(Protocol):
    """What a judge reads of a run's settings; a composed configuration has all of it."""

    judge: JudgeConfig | None
    paths: PathsConfig
    """Their `cache_dir` holds what was answered before."""
    device: str
    """Of judge=local, as the next two."""
    dtype: str
    device_map: Any


def load_judge(settings: JudgeSettings, lexicon: Lexicon | None = None) -> Judge:
    """Load the judge of a run.

    Args:
        settings: a composed configuration, or what else has its `judge`, cache, device and dtype.
        lexicon: for judge=lexical: the concepts' words, and how unsteered texts read.

    Raises:
        SteerlensError: no judge is chosen, it can't work (see `config.judge`), or lexical has no
            lexicon.
    """
    from steerlens.config.judge import check_judge

    config = settings.judge
    if config is None:
        raise SteerlensError("no judge is chosen; add judge=lexical|openai|anthropic|local.")
    check_judge(config)
    if config.name == "lexical":
        from steerlens.judges.lexical import LexicalJudge

        if lexicon is None:
            raise SteerlensError("judge=lexical needs a concept set: it rates by training texts.")
        return LexicalJudge(lexicon)
    from steerlens.config.prices import price_of
    from steerlens.judges.cache import AnswerCache
    from steerlens.judges.rate import LanguageModelJudge

    chat = _chat(settings)
    cache = AnswerCache(Path(settings.paths.cache_dir), chat.identity)
    return LanguageModelJudge(chat, config, cache, price_of(config))


def _chat(settings: JudgeSettings) -> Chat:
    """The one that is asked; its library is imported only here."""
    assert settings.judge is not None
    if settings.judge.name == "openai":
        from steerlens.judges.openai import OpenAIChat

        return OpenAIChat(settings.judge)
    if settings.judge.name == "anthropic":
        from steerlens.judges.anthropic import AnthropicChat

        return AnthropicChat(settings.judge)
    from steerlens.judges.local import LocalChat

    return LocalChat(settings)
