"""Concepts with labelled texts: what supervised methods learn from, and what is steered toward.

A set comes from the installed documentation (`embedded`) or from AxBench's files (`axbench`). Its
texts and prompts are fixed by a seed, and its concepts are checked when it is made, so that what is
wrong with them is known before anything is loaded or computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from steerlens.errors import SteerlensError, unknown

__all__ = ["Concept", "ConceptSet", "FeatureRef", "LabelledText"]


class LabelledText(NamedTuple):
    """A labelled text: what comes first, and what goes on from it."""

    prompt: str
    """An instruction, or how the text opens."""
    text: str
    """The answer, or how the text goes on; the space between the two belongs to it."""


class FeatureRef(NamedTuple):
    """The SAE feature that stands for a concept."""

    layer: int
    feature: int
    source: str
    """Where it is from: Neuronpedia's id of model and SAE."""


@dataclass(frozen=True)
class Concept:
    """A concept, its texts, and the prompts that its steering is judged on."""

    id: int
    """Its own in the set; names may repeat, as in Concept500."""
    name: str
    genre: str = "text"
    """text, math or code (AxBench)."""
    positives: tuple[LabelledText, ...] = ()
    negatives: tuple[LabelledText, ...] = ()
    test_positives: tuple[LabelledText, ...] = ()
    test_negatives: tuple[LabelledText, ...] = ()
    choosing: tuple[str, ...] = ()
    """Prompts that choose the steering factor."""
    evaluating: tuple[str, ...] = ()
    """Prompts that the chosen factor is reported on; none of them is in `choosing`."""
    feature: FeatureRef | None = None

    def with_prompts(self, prompts: Sequence[str]) -> Concept:
        """Return the first half of `prompts` chooses the factor, the second half evaluates
        (AxBench).
        """
        half = len(prompts) // 2
        return replace(self, choosing=tuple(prompts[:half]), evaluating=tuple(prompts[half:]))

    def check_feature(self, layer: int, d_sae: int, sae: str) -> None:
        """Refuse a reference that isn't a feature of the SAE named `sae`."""
        if self.feature is None:
            raise SteerlensError(f"concept {self.id} ({self.name!r}) names no feature of an SAE.")
        has, feature, source = self.feature
        if has != layer or not 0 <= feature < d_sae:
            raise SteerlensError(
                f"concept {self.id} ({self.name!r}) names feature {feature} of layer {has} "
                f"({source}), but {sae} of layer {layer} has features 0 to {d_sae - 1}; use the "
                "SAE that the concepts were made with."
            )


@dataclass(frozen=True)
class ConceptSet:
    """Concepts that are learnt together."""

    name: str
    concepts: tuple[Concept, ...]
    are_instructions: bool
    """Whether prompts are instructions to be followed, or openings of texts."""
    notes: tuple[str, ...] = ()
    """What is missing or was left out, in sentences."""

    def __post_init__(self) -> None:
        if not self.concepts:
            raise SteerlensError(f"the concept set {self.name} has no concept.")
        (key, n), *_ = Counter(concept.id for concept in self.concepts).most_common(1)
        if n > 1:
            raise SteerlensError(f"the concept set {self.name} has {n} concepts with the id {key}.")

    def __len__(self) -> int:
        return len(self.concepts)

    def only(self, names: Iterable[str]) -> ConceptSet:
        """Return the concepts of these names, in the set's order."""
        names_here, wanted_names = {concept.name for concept in self.concepts}, set(names)
        for name in sorted(wanted_names - names_here):
            raise unknown(f"concept of {self.name}", name, names_here)
        return replace(
            self,
            concepts=tuple(concept for concept in self.concepts if concept.name in wanted_names),
        )

    def first(self, n: int | None) -> ConceptSet:
        """Return the first `n` concepts, None = all; that there are fewer is noted."""
        if n is None:
            return self
        notes = self.notes
        if n > len(self):
            too_many = f"concepts.n={n} is more than the {len(self)} concepts of {self.name}"
            notes = (*notes, f"{too_many}: all of them are taken.")
        return replace(self, concepts=self.concepts[:n], notes=notes)

    def parts(self, size: int) -> list[ConceptSet]:
        """Cut the set into sets of at most `size` concepts, in its order."""
        starts = range(0, len(self), size)
        return [replace(self, concepts=self.concepts[start : start + size]) for start in starts]

    def check_texts(self) -> None:
        """Refuse concepts that can't be learnt: without positives or negatives to train on."""
        for concept in self.concepts:
            for texts in ("positives", "negatives"):
                if not getattr(concept, texts):
                    raise SteerlensError(
                        f"concept {concept.id} ({concept.name!r}) of {self.name} has no {texts} to "
                        "train on; leave it out, or use methods that need none (SAE, Random)."
                    )

    def check_features(self, layer: int, d_sae: int, sae: str) -> None:
        """Refuse references that don't name a feature of this SAE: it must be another one's."""
        for concept in self.concepts:
            concept.check_feature(layer, d_sae, sae)
