"""The part of a plan about concepts: how many texts there would be, what ratings would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from steerlens.config.schema import SLOW_METHODS, WITHOUT_FACTOR
from steerlens.config.settings import Settings

CHARACTERS_PER_TOKEN = 4


class PlannedConcepts(NamedTuple):
    """What steering toward concepts would take."""

    concepts: int
    arms: int
    texts: int
    rating: str
    """What rating them takes, in a sentence."""
    slow_methods: tuple[str, ...]
    """Those methods of the run that train for long, or measure texts."""


def planned_concepts(settings: Settings, layer: int, n_layers: int) -> PlannedConcepts:
    """Count what steering toward the concepts of `layer`, and as many in all others, would make.

    Concepts of the installed documentation are counted unread, which takes longer than the plan.

    Args:
        settings: the run's.
        layer: one of its layers.
        n_layers: how many there are.

    Raises:
        SteerlensError: a concept can't be learnt, or there would be too few texts for the judge.
    """
    from steerlens.runs.concepts import concepts_before_loading, refuse_lacking_texts

    methods = settings.concepts
    assert methods is not None
    is_read = methods.source != "embedded"
    concepts = concepts_before_loading(settings, layer, texts=is_read)
    if is_read:
        refuse_lacking_texts(settings, concepts)
    named = all(concept.feature is not None for concept in concepts.concepts)
    n_factors = len(settings.steering.factors)
    tried = [1 if method in WITHOUT_FACTOR else n_factors for method in methods.methods]
    if "SAE" in methods.methods and not named:
        tried += [n_factors] * (methods.features - 1)
    n_texts = 0
    for concept in concepts.concepts:
        choosing, evaluating = len(concept.choosing), len(concept.evaluating)
        n_texts += sum(n * choosing + evaluating for n in [1, *tried])
    n_texts *= n_layers * settings.steering.generation.samples
    first = concepts.concepts[0]
    instruction = first.choosing[0] if concepts.are_instructions else None
    ratings = planned_ratings(settings, first.name, instruction, n_texts)
    slow_methods = tuple(method for method in methods.methods if method in SLOW_METHODS)
    return PlannedConcepts(len(concepts), len(tried), n_texts, ratings, slow_methods)


def planned_ratings(settings: Settings, concept: str, instruction: str | None, n_texts: int) -> str:
    """Say what the judge takes for as many texts as long as they may be.

    Args:
        settings: the run's, with a judge.
        concept: one that texts are steered toward.
        instruction: one that they answer; None where they continue prompts.
        n_texts: how many are rated.
    """
    from steerlens.config.prices import price_of
    from steerlens.judges.cost import estimate
    from steerlens.judges.items import Item, aspects_of
    from steerlens.judges.prompts import conversation

    judge = settings.judge
    assert judge is not None
    item = Item(
        text="x" * CHARACTERS_PER_TOKEN * settings.steering.generation.max_new_tokens,
        concept=concept,
        instruction=instruction,
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
