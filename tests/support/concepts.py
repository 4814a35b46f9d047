"""Made-up concepts for the tiny models, and activations with planted directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from steerlens.data.concept_sets import Concept, ConceptSet, FeatureRef, LabelledText
from steerlens.engine.subject import Subject
from steerlens.steering.methods.labelled import Labelled, Tokens, TokenVectors, label
from steerlens.steering.methods.task import Task


def tiny_concepts(
    n: int = 3, n_texts: Sequence[int] = (7, 5), n_test: int = 4, shared: bool = False
) -> ConceptSet:
    """Concepts whose positives have words that others don't have; texts of different lengths."""

    def texts(concept: int, size: int, salt: int) -> tuple[LabelledText, ...]:
        draw = np.random.default_rng([concept, salt])
        own = [f"w{20 + 10 * concept + k}" for k in range(3)]
        common = [f"w{100 + k}" for k in range(40)]
        found = []
        for _ in range(size):
            words = draw.choice(common, int(draw.integers(4, 9))).tolist()
            for place in draw.choice(len(words), 3, replace=False):
                words[place] = str(draw.choice(own))
            found.append(LabelledText("the experience", " " + " ".join(words)))
        return tuple(found)

    others = 9 if shared else None
    return ConceptSet(
        "tiny",
        tuple(
            Concept(
                id=10 + c,
                name=f"concept {c}",
                positives=texts(c, n_texts[0], 0),
                negatives=texts(9 if shared else 5 + c, n_texts[1], 1),
                test_positives=texts(c, n_test, 2),
                test_negatives=texts(others or 5 + c, n_test, 3),
                feature=FeatureRef(2, 5 + c, "tiny/2-sae"),
            ).with_prompts(["In my", "Note that", "From", "the"])
            for c in range(n)
        ),
        are_instructions=False,
    )


def tiny_task(subject: Subject, concepts: ConceptSet | None = None) -> Task:
    concepts = concepts or tiny_concepts()
    return Task(subject, concepts.concepts, label(subject, concepts.concepts))


class FakeTask(Task):
    """A task whose vectors are given, without a model."""

    def __init__(self, vectors: TokenVectors, labelled: Labelled) -> None:
        concepts = tuple(Concept(id=c, name=str(c)) for c in range(len(labelled)))
        super().__init__(None, concepts, labelled)  # type: ignore[arg-type]
        self.__dict__["vectors"] = vectors


def planted(
    n_concepts: int = 3,
    d_model: int = 40,
    n_texts: int = 20,
    strength: float = 8.0,
    spread: float = 0.0,
    offset: float = 0.5,
    seed: int = 0,
) -> tuple[FakeTask, torch.Tensor]:
    """Noise, to which positives' tokens add their concept's direction, and these directions (C, D).

    `strength` times it is added, give or take `spread` times a normal number; all entries of all
    tokens have `offset` added.
    """
    generator = torch.Generator().manual_seed(seed)
    true_CD = torch.linalg.qr(torch.randn(d_model, n_concepts, generator=generator)).Q.T
    rows, sizes = [], []
    for concept in range(n_concepts):
        for text in range(2 * n_texts):
            length = 3 + (7 * text + concept) % 6
            x_LD = torch.randn(length + 1, d_model, generator=generator) + offset
            if text < n_texts:
                amount = strength + spread * torch.randn(length + 1, 1, generator=generator)
                x_LD += amount * true_CD[concept]
            x_LD[0] = 1000.0  # a prefix, which nothing may look at
            rows.append(x_LD)
            sizes.append(length + 1)
    starts = np.cumsum([0, *sizes]).tolist()
    vectors = TokenVectors(torch.cat(rows), starts, [1] * len(rows))
    places = np.arange(len(rows)).reshape(n_concepts, 2, n_texts)
    labelled = Labelled(
        [Tokens([0] * size, 1, 1) for size in sizes],
        places[:, 0].tolist(),
        places[:, 1].tolist(),
    )
    return FakeTask(vectors, labelled), true_CD
