"""Ratings of texts by a judge: 0, 1 or 2 for concept, instruction and fluency.

| `judge=` | who rates | what it costs |
|---|---|---|
| `lexical` | no model: words of the concept, perplexity, repetition; no instruction | nothing |
| `openai` | any OpenAI-compatible server, hosted or your own | by token, or nothing |
| `anthropic` | Anthropic's models | by token |
| `local` | a Hugging Face model in this process | nothing |

A judge is a module here, or in another package, with a first docstring line that says who rates,
`check(config)`, which refuses settings that can't work before anything is loaded, and
`load(settings, lexicon)`, which gives the judge. All have one interface, `items.Judge`. A rating
that can't be had is missing, counted, with why; it is never silently 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from steerlens.config.judge import check_judge
from steerlens.config.registry import load_part, parts_of
from steerlens.config.schema import JudgeConfig, PathsConfig
from steerlens.errors import SteerlensError
from steerlens.judges.items import ASPECTS, Item, Judge, Rated, Rating

if TYPE_CHECKING:
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
    config = settings.judge
    if config is None:
        raise SteerlensError(f"no judge is chosen; add judge={'|'.join(parts_of('judges'))}.")
    check_judge(config)
    return load_part("judges", config.name).load(settings, lexicon)
