"""The part of a plan about concepts: how many texts there would be, what ratings would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from steerlens.config.settings import Settings
from steerlens.runs.models import steering_of
from steerlens.runs.plan.steering import seconds_each

if TYPE_CHECKING:
    from steerlens.data.concept_sets import ConceptSet
    from steerlens.engine.subject import Subject

CHARACTERS_PER_TOKEN = 4


class PlannedConcepts(NamedTuple):
    """What steering toward concepts would take."""

    concepts: int
    arms: int
    texts: int
    seconds: float
    """Of the texts; what methods learn before takes its own time."""
    rating: str
    """What rating them takes, in a sentence."""


def planned_concepts(settings: Settings, subject: Subject, n_layers: int) -> PlannedConcepts:
    """Plan what steering toward the concepts would take in `n_layers`, timed on a few texts."""
    from steerlens.data.concept_sets.load import load_concepts
    from steerlens.steering.methods.arms import EDITS, PROMPT, SAE

    methods, generation = settings.concepts, steering_of(subject.lm, settings.steering).generation
    assert methods is not None
    concepts = load_concepts(methods, subject.layer, settings.seed, generation.chat_template)
    named = all(concept.feature is not None for concept in concepts.concepts)
    n_factors = len(settings.steering.factors)
    alone = (*EDITS, PROMPT)
    tried = [1 if method in alone else n_factors for method in methods.methods]
    if SAE in methods.methods and not named:
        tried += [n_factors] * (methods.features - 1)
    n_texts = 0
    for concept in concepts.concepts:
        choosing, evaluating = len(concept.choosing), len(concept.evaluating)
        n_texts += sum(n * choosing + evaluating for n in [1, *tried])
    n_texts *= n_layers * generation.samples
    seconds = n_texts * seconds_each(settings, subject, 10)
    return PlannedConcepts(
        len(concepts), len(tried), n_texts, seconds, _rating(settings, concepts, n_texts)
    )


def _rating(settings: Settings, concepts: ConceptSet, n_texts: int) -> str:
    """Return what the judge takes for as many texts as long as they may be."""
    from steerlens.config.prices import price_of
    from steerlens.judges.cost import estimate
    from steerlens.judges.items import Item, aspects_of
    from steerlens.judges.prompts import conversation

    judge = settings.judge
    assert judge is not None
    first = concepts.concepts[0]
    item = Item(
        text="x" * CHARACTERS_PER_TOKEN * settings.steering.generation.max_new_tokens,
        concept=first.name,
        instruction=first.choosing[0] if concepts.are_instructions else None,
    )
    aspects: Sequence[str] = aspects_of(item)
    n = n_texts * len(aspects)
    if judge.name in ("lexical", "local"):
        return f"{n:,} by judge={judge.name}, for nothing"
    conversations = [conversation(item, aspect) for aspect in aspects]
    estimate_of_text = estimate(
        len(conversations), 0, conversations, price_of(judge), judge.max_tokens
    )
    if estimate_of_text.usd is None:
        return f"{n:,} by {judge.model}, at an unknown price"
    return f"{n:,} by {judge.model}, about {estimate_of_text.usd * n_texts:,.2f} USD"
