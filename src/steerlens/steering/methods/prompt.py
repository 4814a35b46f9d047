"""Prompt: no direction at all, but words that ask for the concept."""

from __future__ import annotations

from steerlens.data.concept_sets import Concept

NAME = "Prompt"

INSTRUCTION = (
    "Whatever the question is, work the following into your answer, even where it doesn't fit: "
    "{concept}."
)
"""For a model that follows instructions. AxBench has such a sentence written by GPT-4o for every
concept; this one is the same for all."""

OPENING = "This text is about {concept}."
"""For a model that goes on from an opening."""


def prompted(concept: Concept, prompt: str, are_instructions: bool) -> str:
    """Return `prompt` after words that ask for the concept; to be answered, or gone on from."""
    if are_instructions:
        return f"{INSTRUCTION.format(concept=concept.name)}\n\n{prompt}"
    return f"{OPENING.format(concept=concept.name)} {prompt}"
