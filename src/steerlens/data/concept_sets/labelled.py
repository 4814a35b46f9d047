"""Texts with and without a concept, split into those to learn from and those to test on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from steerlens.data.concept_sets import Concept, ConceptSet, LabelledText
from steerlens.data.concept_sets.axbench import axbench_folder
from steerlens.data.concept_sets.embedded import embedded_concepts
from steerlens.errors import SteerlensError
from steerlens.storage.files import parse_json, read_text

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"

# Once for all layers: reading the installed documentation takes some seconds.
_embedded = cache(embedded_concepts)

FEWEST = 2
"""Texts of each label in a file, so that each half has one."""


class Split(NamedTuple):
    """Labelled texts to learn from and to test on."""

    train: Sequence[str]
    is_positive_train: np.ndarray
    """(N,) bool."""
    test: Sequence[str]
    is_positive_test: np.ndarray


def labelled_split(labels: str, topic: str | None, n_train: int, n_test: int, seed: int) -> Split:
    """Return the texts of a concept, and others beside them.

    Args:
        labels: a file of JSON lines, `EMBEDDED`, or a folder in AxBench's layout.
        topic: the concept's name where there are several.
        n_train: `EMBEDDED`: positives to learn from, and as many negatives.
        n_test: `EMBEDDED`: positives to test on, and as many negatives.
        seed: `EMBEDDED`: which texts.

    Raises:
        SteerlensError: there is no such concept, or it has no texts to learn from or to test on.
    """
    path = Path(labels)
    if path.is_file():
        texts = read_labels(path)
        # Every second of each label, so that both halves have both.
        sides = [[text for text, label in texts if label is side] for side in (True, False)]
        return _split([side[::2] for side in sides], [side[1::2] for side in sides])
    concepts = _concepts(labels, n_train, n_test, seed)
    concept = concepts.only([topic or ""]).concepts[0]
    has_train, has_test = len(concept.positives), len(concept.test_positives)
    if labels == EMBEDDED and (has_train, has_test) != (n_train, n_test):
        _tell_fewer(concept.name, has_train, n_train, has_test, n_test)
    return _split_of(concept, labels)


def labelled_splits(labels: str, n_train: int, n_test: int, seed: int) -> list[tuple[str, Split]]:
    """Return the name and the texts of every concept; see `labelled_split`."""
    concepts = _concepts(labels, n_train, n_test, seed).concepts
    return [(concept.name, _split_of(concept, labels)) for concept in concepts]


def _concepts(labels: str, n_train: int, n_test: int, seed: int) -> ConceptSet:
    if labels == EMBEDDED:
        return _embedded(n_train, n_test, 2, seed)
    return axbench_folder(Path(labels))


@cache
def _tell_fewer(name: str, n_train: int, wanted_train: int, n_test: int, wanted_test: int) -> None:
    """Say once, not for every layer, that a topic has fewer texts than wanted."""
    learnt, tested = f"{n_train} of {wanted_train}", f"{n_test} of {wanted_test}"
    logger.warning(
        "the topic %s has %s texts to learn from, and %s to test on.", name, learnt, tested
    )


def _split_of(concept: Concept, labels: str) -> Split:
    for name in ("positives", "negatives", "test_positives", "test_negatives"):
        if not getattr(concept, name):
            raise SteerlensError(
                f"the concept {concept.name!r} of score.labels={labels} has no {name}."
            )
    return _split(
        [_with_prompts(concept.positives), _with_prompts(concept.negatives)],
        [_with_prompts(concept.test_positives), _with_prompts(concept.test_negatives)],
    )


def _with_prompts(texts: Sequence[LabelledText]) -> list[str]:
    return [text.prompt + text.text for text in texts]


def _split(train: Sequence[list[str]], test: Sequence[list[str]]) -> Split:
    """Return a split from positives and negatives to learn from, and to test on."""
    labels = [np.arange(sum(map(len, sides))) < len(sides[0]) for sides in (train, test)]
    return Split([*train[0], *train[1]], labels[0], [*test[0], *test[1]], labels[1])


def read_labels(path: Path) -> list[tuple[str, bool]]:
    """Return the texts of a file of JSON lines, and whether each is of the concept.

    Raises:
        SteerlensError: for a line of another form, or fewer than two texts of a label.
    """
    form = 'each line must be {"text": ..., "label": true or false}'
    texts: list[tuple[str, bool]] = []
    try:
        lines = read_text(path).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise SteerlensError(f"score.labels={path} can't be read ({reason}); {form}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        text = row.get("text") if isinstance(row, dict) else None
        label = row.get("label") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip() or label not in (True, False):
            raise SteerlensError(f"score.labels={path}, line {number}: {form}.")
        texts.append((text, bool(label)))
    for side, noun in ((True, "true"), (False, "false")):
        n = sum(label is side for _, label in texts)
        if n < FEWEST:
            raise SteerlensError(
                f"score.labels={path} has {n} texts with label {noun}; it takes {FEWEST} of each: "
                "half of them set the threshold, half are tested."
            )
    return texts
