"""Make the multiple-choice items that ship with the package, for `evaluate.tasks`.

    python -m experiments.capability.items

Definitions and opposites are made from WordNet's database (Debian: `apt-get install wordnet-base`),
whose licence allows it, sums from nothing. More items leave the first ones as they are. All choices
are common words: a rare one is told from others by its tokens alone.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "src" / "steerlens" / "data" / "tasks"
WORDNET = Path("/usr/share/wordnet")
N_CHOICES = 4
COMMON = {"noun": 12, "adj": 2}
"""How often a word's first sense is tagged in WordNet's texts, at least."""

COARSE = re.compile("slur|offensive|disparag|obscen|vulgar|derogat|contempt|sexual|genital|insult")
"""What WordNet says of words that nobody wants to meet in a task, in one of their meanings."""


@dataclass(frozen=True)
class Word:
    """A word in its most frequent sense."""

    lemma: str
    definition: str
    opposites: tuple[str, ...]
    synonyms: frozenset[str]


def common_words(part: str) -> list[Word]:
    """Read the common words of a part of speech, in the order of the alphabet."""
    counts: dict[str, int] = defaultdict(int)
    number = {"noun": "1", "adj": "3"}[part]
    for line in (WORDNET / "cntlist.rev").read_text().splitlines():
        key, sense, count = line.split()
        lemma, rest = key.split("%")
        if rest[0].replace("5", "3") == number and sense == "1":
            counts[lemma] += int(count)
    synsets = {}
    for line in (WORDNET / f"data.{part}").read_text().splitlines():
        if not line.startswith(" "):
            synsets[line[:8]] = line
    words = []
    for line in (WORDNET / f"index.{part}").read_text().splitlines():
        fields = line.split()
        if line.startswith(" ") or not fields[0].isalpha() or counts[fields[0]] < COMMON[part]:
            continue
        senses = [synsets[offset] for offset in fields[6 + int(fields[3]) :]]
        word = _word(fields[0], senses[0], synsets)
        is_name = word.lemma not in word.synonyms  # the index has all in lower case
        if not is_name and not any(COARSE.search(sense) for sense in senses):
            words.append(word)
    return words


def _word(lemma: str, line: str, synsets: dict[str, str]) -> Word:
    fields, gloss = line.split(" | ", 1)
    columns = fields.split()
    lemmas = _lemmas(columns)
    pointers = columns[5 + 2 * len(lemmas) :]
    opposites = []
    for start in range(0, 4 * int(columns[4 + 2 * len(lemmas)]), 4):
        symbol, offset, _, ends = pointers[start : start + 4]
        source, target = int(ends[:2], 16), int(ends[2:], 16)
        if symbol == "!" and source and lemmas[source - 1] == lemma:
            opposites.append(_lemmas(synsets[offset].split(" | ")[0].split())[target - 1])
    definition = re.sub(r"\([^)]*\)", "", gloss.split('; "')[0])
    return Word(
        lemma,
        " ".join(definition.split()).strip(" ;"),
        tuple(opposites),
        frozenset(lemmas),
    )


def _lemmas(columns: Sequence[str]) -> list[str]:
    n_words = int(columns[3], 16)
    return [re.sub(r"\(\w+\)$", "", word) for word in columns[4 : 4 + 2 * n_words : 2]]


def definitions() -> Iterator[dict[str, object]]:
    """Yield which of four nouns a definition is of."""
    nouns = [word for word in common_words("noun") if len(word.lemma) > 2]
    rng = random.Random("definitions")
    rng.shuffle(nouns)
    for word in nouns:
        if not 4 <= len(word.definition.split()) <= 20 or word.lemma in word.definition:
            continue
        yield _item(rng, word.lemma, nouns, word.synonyms, definition=word.definition)


def opposites() -> Iterator[dict[str, object]]:
    """Yield which of four adjectives is the opposite of another."""
    adjectives = common_words("adj")
    common = {word.lemma for word in adjectives}
    rng = random.Random("opposites")
    rng.shuffle(adjectives)
    for word in adjectives:
        for opposite in word.opposites[:1]:
            if opposite in common:
                excluded = word.synonyms | set(word.opposites)
                yield _item(rng, opposite, adjectives, excluded, word=word.lemma)


def sums() -> Iterator[dict[str, object]]:
    """Yield which of four numbers a sum or a difference is."""
    rng = random.Random("sums")
    sums = [(a, sign, b) for a in range(1, 30) for b in range(1, 10) for sign in "+-" if a >= b]
    rng.shuffle(sums)
    for a, sign, b in sums:
        result = a + b if sign == "+" else a - b
        near = [n for n in range(max(0, result - 6), result + 7) if n != result]
        choices = [result, *rng.sample(near, N_CHOICES - 1)]
        rng.shuffle(choices)
        yield {
            "question": f"{a} {sign} {b}",
            "choices": [str(choice) for choice in choices],
            "answer": choices.index(result),
        }


def _item(
    rng: random.Random, right: str, words: Sequence[Word], excluded: frozenset[str], **texts: str
) -> dict[str, object]:
    """Return an item whose wrong choices are other words, none of them `excluded`."""
    others = [word.lemma for word in words if word.lemma not in excluded | {right}]
    choices = [right, *rng.sample(others, N_CHOICES - 1)]
    rng.shuffle(choices)
    return {**texts, "choices": choices, "answer": choices.index(right)}


MAKERS: dict[str, Callable[[], Iterator[dict[str, object]]]] = {
    "definitions": definitions,
    "opposites": opposites,
    "sums": sums,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--n", type=int, default=200)
    arguments = parser.parse_args()
    for name, make in MAKERS.items():
        items = [item for item, _ in zip(make(), range(arguments.n), strict=False)]
        lines = [json.dumps(item, ensure_ascii=False) for item in items]
        (arguments.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(items)} items")


if __name__ == "__main__":
    main()
