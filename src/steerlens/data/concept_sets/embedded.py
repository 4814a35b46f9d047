"""Concepts with real labels from the installed documentation: what part of it a text is from.

A concept is a topic, a topic is some modules of the standard library and of the packages that
steerlens itself needs. Texts of one module are never in training and test at once. Negatives are
positives of the other concepts. Prompts are openings of sentences from held-out modules
(`split="validation"`). Everything is fixed by the seed and the installed files.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from steerlens.config.prompts import REQUESTS
from steerlens.data.concept_sets import Concept, ConceptSet, LabelledText
from steerlens.data.corpus.installed import Document, documents
from steerlens.errors import SteerlensError

NAME = "embedded"

TOPICS: dict[str, tuple[str, ...]] = {
    "networking": (
        "socket", "socketserver", "ssl", "http", "urllib", "ftplib", "imaplib", "poplib", "xmlrpc",
        "requests", "urllib3", "httpx", "httpcore", "aiohttp", "anyio", "h11",
    ),
    "dates and times": (
        "datetime", "_pydatetime", "calendar", "zoneinfo", "dateutil", "matplotlib.dates",
        "pandas.tseries", "pandas.core.tools.datetimes", "pandas.core.tools.timedeltas",
        "pandas.core.arrays.datetimelike", "pandas.core.arrays.datetimes",
        "pandas.core.arrays.timedeltas", "pandas.core.arrays.period",
        "pandas.core.indexes.datetimelike", "pandas.core.indexes.datetimes",
        "pandas.core.indexes.timedeltas", "pandas.core.indexes.period",
    ),
    "arrays": ("numpy.lib", "numpy._core", "numpy.ma", "numpy.matrixlib", "numpy.fft"),
    "tensors": (
        "torch._tensor_docs", "torch._torch_docs", "torch._tensor", "torch.functional",
        "torch.storage", "torch.nested", "torch.masked", "torch.sparse", "torch.fft",
    ),
    "neural networks": ("torch.nn",),
    "plotting": ("matplotlib", "mpl_toolkits"),
    "data frames": (
        "pandas.core.frame", "pandas.core.generic", "pandas.core.series", "pandas.core.reshape",
        "pandas.core.groupby", "pandas.core.base", "pandas.core.strings", "pandas.core.window",
    ),
    "probability distributions": (
        "torch.distributions", "statistics", "scipy.stats", "random", "numpy.random",
    ),
    "graphs": ("networkx",),
    "symbolic algebra": ("sympy",),
    "linguistics": ("nltk",),
    "files and folders": (
        "pathlib", "os", "shutil", "zipfile", "tarfile", "tempfile", "glob", "fnmatch", "filecmp",
        "fileinput", "posixpath", "ntpath", "genericpath", "fsspec", "filelock", "gzip", "bz2",
        "lzma",
    ),
    "threads and processes": (
        "threading", "multiprocessing", "subprocess", "concurrent", "asyncio", "queue", "sched",
        "selectors", "signal", "torch.multiprocessing", "contextvars",
    ),
    "e-mail": ("email", "mailbox", "smtplib", "mailcap", "quopri"),
    "command lines": ("argparse", "optparse", "getopt", "cmd", "shlex", "click", "typer", "pdb"),
    "testing": ("unittest", "doctest", "numpy.testing", "torch.testing", "pandas._testing"),
    "optimisers": ("torch.optim", "scipy.optimize", "transformers.optimization"),
    "text generation": (
        "tokenizers", "tokenize", "transformers.convert_slow_tokenizer",
        "transformers.tokenization_utils", "transformers.tokenization_utils_base",
        "transformers.tokenization_python", "transformers.tokenization_utils_tokenizers",
        "transformers.tokenization_utils_sentencepiece", "transformers.tokenization_utils_fast",
        "transformers.generation", "sentencepiece",
    ),
    "markup languages": ("xml", "html", "markdown_it", "jinja2", "markupsafe", "yaml"),
    "images": ("PIL", "transformers.image_utils", "transformers.image_transforms", "colorsys",
               "transformers.image_processing_utils", "transformers.image_processing_utils_fast"),
}  # fmt: skip
"""The modules of each topic, by what their names begin with. A module that two of them fit belongs
to the longer one. Where one isn't installed, its topic has fewer texts or is left out."""

LEAST = 8
"""A topic with fewer texts to train on, or half as many to test on, is left out."""

PER_MODULE = 12
"""Texts of one module at most, so that no module is most of a concept."""

WORDS = (12, 40)
"""Words in a text: at least, and at most."""

OPENING = 6
"""Words of a text that count as its prompt, and of a sentence that make a prompt."""

_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def embedded_concepts(
    n_train: int = 72,
    n_test: int = 36,
    n_prompts: int = 10,
    seed: int = 0,
    roots: Iterable[Path] | None = None,
    topics: Mapping[str, Sequence[str]] = TOPICS,
) -> ConceptSet:
    """Return the concepts that the installed documentation has enough texts of.

    Args:
        n_train: positives to train on, and as many negatives (AxBench's 72).
        n_test: positives to test on, and as many negatives (AxBench's 36).
        n_prompts: half of them choose the factor, half evaluate.
        seed: what texts are drawn by.
        roots: folders of Python files; None = this installation's.
        topics: modules of each concept.

    Raises:
        SteerlensError: if fewer than two topics have texts, none has as many as are wanted, or
            there are too few prompts.
    """
    roots = None if roots is None else list(roots)
    topic_of = _Topics(topics)
    texts_of_topic: dict[str, tuple[list[LabelledText], list[LabelledText]]] = {}
    notes: list[str] = []
    short: list[str] = []
    prompts_used: set[str] = set()
    for name in topics:
        train, test = _texts_of(name, topic_of, n_train, n_test, seed, roots, prompts_used)
        if len(train) < min(LEAST, n_train) or len(test) < min(LEAST // 2, n_test):
            notes.append(
                f"{name} is left out: the installed documentation has {len(train)} texts to train "
                f"and {len(test)} to test on."
            )
            continue
        if (len(train), len(test)) != (n_train, n_test):
            short.append(
                f"{name} has {len(train)} of {n_train} texts to train and {len(test)} of {n_test} "
                "to test on"
            )
        texts_of_topic[name] = (train, test)
    if len(texts_of_topic) < 2:
        raise SteerlensError(
            "the installed documentation has texts of fewer than two topics; install steerlens "
            "with its dependencies, or use another concept set."
        )
    for part, (key, n) in enumerate((("n_train", n_train), ("n_test", n_test))):
        most, largest = max((len(texts[part]), name) for name, texts in texts_of_topic.items())
        if most < n:
            raise SteerlensError(
                f"{key}={n:,} is more texts than any topic of the installed documentation has; "
                f"{largest} has most, {most:,}."
            )
    if short:
        notes.append("; ".join(short) + ".")
    openings = _openings(topic_of, seed, roots)
    concepts = [
        Concept(
            id=list(topics).index(name),
            name=name,
            positives=tuple(train),
            negatives=tuple(_of_other_concepts(texts_of_topic, 0, name, len(train), seed)),
            test_positives=tuple(test),
            test_negatives=tuple(_of_other_concepts(texts_of_topic, 1, name, len(test), seed)),
        ).with_prompts(_prompts_of(name, openings, n_prompts, seed))
        for name, (train, test) in texts_of_topic.items()
    ]
    return ConceptSet(NAME, tuple(concepts), are_instructions=False, notes=tuple(notes))


def unread_topics(n_prompts: int) -> ConceptSet:
    """Return the topics without their texts, and with as many prompts as they would have."""
    prompts = [f"prompt {number}" for number in range(n_prompts)]
    topics = [Concept(id, name).with_prompts(prompts) for id, name in enumerate(TOPICS)]
    return ConceptSet(NAME, tuple(topics), are_instructions=False)


def as_answers(concepts: ConceptSet, n_prompts: int, seed: int) -> ConceptSet:
    """Make each text the answer to a neutral request, for models that are steered in a chat.

    Args:
        concepts: with texts that are openings and their continuations.
        n_prompts: requests that steering is judged on, half of them to choose the factor; no text
            is an answer to one of these.
        seed: what requests are drawn by.

    Raises:
        SteerlensError: if no request would be left for the texts.
    """
    if n_prompts >= len(REQUESTS):
        raise SteerlensError(
            f"concepts.n_prompts={n_prompts} must be less than {len(REQUESTS)} inside a chat "
            "template: there are so many requests, and the texts to learn from need one as well."
        )
    drawn = sorted(REQUESTS, key=lambda request: _draw(seed, "request", request))
    prompts, answered = drawn[:n_prompts], drawn[n_prompts:]

    def answers(examples: Iterable[LabelledText]) -> tuple[LabelledText, ...]:
        texts = [example.prompt + example.text for example in examples]
        return tuple(
            LabelledText(
                min(answered, key=lambda text_before: _draw(seed, "answer", text, text_before)),
                text,
            )
            for text in texts
        )

    parts = ("positives", "negatives", "test_positives", "test_negatives")
    in_chat = [
        replace(concept, **{part: answers(getattr(concept, part)) for part in parts})
        for concept in concepts.concepts
    ]
    return replace(
        concepts,
        concepts=tuple(concept.with_prompts(prompts) for concept in in_chat),
        are_instructions=True,
    )


class _Topics:
    """Which topic a module belongs to."""

    def __init__(self, topics: Mapping[str, Sequence[str]]) -> None:
        self._topic_of = {prefix: name for name, all_of in topics.items() for prefix in all_of}
        self.packages = {
            name: sorted({prefix.partition(".")[0] for prefix in all_of})
            for name, all_of in topics.items()
        }

    def of(self, module: str) -> str | None:
        parts = module.split(".")
        prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next(
            (self._topic_of[prefix] for prefix in prefixes if prefix in self._topic_of), None
        )


def _texts_of(
    name: str,
    topics: _Topics,
    n_train: int,
    n_test: int,
    seed: int,
    roots: Sequence[Path] | None,
    prompts_used: set[str],
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Return texts to train and to test on: of every three modules, one is for testing."""
    n_of_part, parts = (n_train, n_test), ([], [])
    count: dict[str, int] = defaultdict(int)
    part_of_module: dict[str, int] = {}
    for document in documents(
        roots,
        packages=topics.packages[name],
        modules=lambda module: topics.of(module) == name,
        split="train",
        kinds=("docstring", "string"),
        seed=seed,
    ):
        module = document.module
        part = part_of_module.setdefault(module, int(len(part_of_module) % 3 == 1))
        example = _example(document)
        if example is None or example.prompt in prompts_used or count[module] == PER_MODULE:
            continue
        if len(parts[part]) < n_of_part[part]:
            parts[part].append(example)
            prompts_used.add(example.prompt)
            count[module] += 1
        elif all(len(have) == want for have, want in zip(parts, n_of_part, strict=True)):
            break
    return parts


def _example(document: Document) -> LabelledText | None:
    """Return the document's beginning, in whole sentences as far as they fit."""
    words: list[str] = []
    least, most = WORDS
    for sentence in _sentences(document.text):
        if words and len(words) + len(sentence) > most:
            break
        words += sentence
        if len(words) >= 2 * least:
            break
    if len(words) < least:
        return None
    return LabelledText(" ".join(words[:OPENING]), " " + " ".join(words[OPENING:most]))


def _sentences(text: str) -> Iterator[list[str]]:
    for sentence in _SENTENCE_ENDS.split(text):
        yield sentence.split()


def _of_other_concepts(
    texts_of_topic: Mapping[str, tuple[list[LabelledText], list[LabelledText]]],
    part: int,
    name: str,
    n: int,
    seed: int,
) -> list[LabelledText]:
    """Return `n` positives of the other concepts, of all as equally many as possible."""
    shuffled = [
        sorted(
            texts[part],
            key=lambda example: _draw(seed, "negative", name, example.prompt, example.text),
        )
        for topic, texts in texts_of_topic.items()
        if topic != name
    ]
    longest = max(map(len, shuffled))
    order = sorted(range(len(shuffled)), key=lambda i: _draw(seed, "turn", name, i))
    in_turns = (shuffled[i][k] for k in range(longest) for i in order if k < len(shuffled[i]))
    return [example for example, _ in zip(in_turns, range(n), strict=False)]


def _openings(
    topics: _Topics, seed: int, roots: Sequence[Path] | None
) -> list[tuple[str, str | None]]:
    """Return openings of sentences of held-out modules, and their topic, in an order of the
    seed's.
    """
    packages = sorted({package for all_of in topics.packages.values() for package in all_of})
    held_out = documents(
        roots, packages=packages, split="validation", modules=_is_held_out,
        kinds=("docstring", "string"), seed=seed,
    )  # fmt: skip
    topic_of_opening: dict[str, str | None] = {}
    for document in held_out:
        for words in _sentences(document.text):
            opening = words[:OPENING]
            if len(words) >= 2 * OPENING and all(re.fullmatch(r"[A-Za-z'-]+", w) for w in opening):
                topic_of_opening.setdefault(" ".join(opening), topics.of(document.module))
                break
    return sorted(topic_of_opening.items(), key=lambda opening: _draw(seed, "opening", opening[0]))


def _is_held_out(module: str) -> bool:
    return Document("", module, "", "docstring").split == "validation"


def _prompts_of(
    name: str, openings: Sequence[tuple[str, str | None]], n: int, seed: int
) -> list[str]:
    """Return openings that are of another topic than the concept's, or of none."""
    possible = [opening for opening, topic in openings if topic != name]
    if len(possible) < n:
        raise SteerlensError(
            f"the installed documentation has {len(possible)} openings of held-out sentences for "
            f"the concept {name!r}, of which {n} are wanted; use fewer prompts."
        )
    return sorted(possible, key=lambda opening: _draw(seed, "prompt", name, opening))[:n]


def _draw(*parts: object) -> bytes:
    """Return a number as good as random, the same for the same parts."""
    return hashlib.sha256(repr(parts).encode()).digest()
