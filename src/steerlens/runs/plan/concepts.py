"""The part of a plan about concepts: how many texts there would be, what ratings would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from steerlens.config.schema import RunConfig
from steerlens.config.steering import parse_factors, with_template
from steerlens.runs.plan.steering import seconds_each

if TYPE_CHECKING:
    from steerlens.data.concept_sets import ConceptSet
    from steerlens.engine.subject import Subject

CHARACTERS_PER_TOKEN = 4


class PlannedConcepts(NamedTuple):
    concepts: int
    arms: int
    texts: int
    seconds: float
    """Of the texts; what methods learn before takes its own time."""
    rating: str
    """What rating them takes, in a sentence."""


def planned_concepts(config: RunConfig, subject: Subject, n_layers: int) -> PlannedConcepts:
    """What steering toward `config.concepts` would take in `n_layers`, timed on a few texts."""
    from steerlens.data.concept_sets.load import load_concepts
    from steerlens.steering.methods.arms import ONE_FACTOR, PROMPT, SAE

    assert config.concepts is not None
    has_template = bool(subject.lm.tokenizer.chat_template)
    chat = with_template(config.generation, has_template, subject.lm.name).chat_template
    concepts = load_concepts(config.concepts, subject.layer, config.seed, chat)
    named = all(concept.feature is not None for concept in concepts.concepts)
    n_factors = len(parse_factors(config.steer.factors))
    alone = (*ONE_FACTOR, PROMPT)
    tried = [1 if method in alone else n_factors for method in config.concepts.methods]
    if SAE in config.concepts.methods and not named:
        tried += [n_factors] * (config.concepts.features - 1)
    n_texts = 0
    for concept in concepts.concepts:
        choosing, evaluating = len(concept.choosing), len(concept.evaluating)
        n_texts += sum(n * choosing + evaluating for n in [1, *tried])
    n_texts *= n_layers * config.generation.samples
    seconds = n_texts * seconds_each(config, subject, 10)
    return PlannedConcepts(
        len(concepts), len(tried), n_texts, seconds, _rating(config, concepts, n_texts)
    )


def _rating(config: RunConfig, concepts: ConceptSet, n_texts: int) -> str:
    """What the judge takes for as many texts as long as they may be."""
    from steerlens.config.prices import price_of
    from steerlens.judges.cost import estimate
    from steerlens.judges.items import Item, aspects_of
    from steerlens.judges.prompts import conversation

    assert config.judge is not None
    first = concepts.concepts[0]
    item = Item(
        text="x" * CHARACTERS_PER_TOKEN * config.generation.max_new_tokens,
        concept=first.name,
        instruction=first.choosing[0] if concepts.are_instructions else None,
    )
    aspects: Sequence[str] = aspects_of(item)
    n = n_texts * len(aspects)
    if config.judge.name in ("lexical", "local"):
        return f"{n:,} by judge={config.judge.name}, for nothing"
    conversations = [conversation(item, aspect) for aspect in aspects]
    estimate_of_text = estimate(
        len(conversations), 0, conversations, price_of(config.judge), config.judge.max_tokens
    )
    if estimate_of_text.usd is None:
        return f"{n:,} by {config.judge.model}, at an unknown price"
    return f"{n:,} by {config.judge.model}, about {estimate_of_text.usd * n_texts:,.2f} USD"
