"""Instructions on which the steering of a concept is judged: the first half of a concept's chooses
the factor, the second half is reported (AxBench).
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from steerlens.config.schema import INSTRUCTIONS
from steerlens.data.concept_sets import ConceptSet
from steerlens.errors import SteerlensError, unknown
from steerlens.storage.files import parse_json, read_text

ENDINGS = (".parquet", ".jsonl", ".json")


class HubTable(NamedTuple):
    """A column of a file on the hub."""

    address: str
    column: str


ALPACA_EVAL = HubTable("hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json", "instruction")
DOLLY = HubTable(
    "hf://datasets/databricks/databricks-dolly-15k/databricks-dolly-15k.jsonl", "instruction"
)
GSM8K = HubTable("hf://datasets/openai/gsm8k/main/test-00000-of-00001.parquet", "question")
OF_GENRE = {"text": DOLLY, "math": GSM8K, "code": ALPACA_EVAL}


def with_instructions(
    concepts: ConceptSet, source: str = "alpaca_eval", path: Path | None = None, n: int = 10
) -> ConceptSet:
    """Return the concepts with `n` instructions each.

    Args:
        concepts: a set whose prompts are instructions.
        source: alpaca_eval, AlpacaEval for all (AxBench); genre, Dolly for text, GSM8K for math,
            AlpacaEval for code (the paper); or released, a file of the paper's authors.
        path: for alpaca_eval, a file instead of the hub's; for genre, a folder with a file for each
            genre (`text.jsonl`, ...), with a column `instruction` or `question`; for released, the
            authors' JSON file.
        n: instructions of a concept: a sample with pandas and the seed `concept_id` (AxBench).

    Raises:
        SteerlensError: for an unknown source, files that can't be read or lack a column, too few
            instructions, or a concept that the released file doesn't have.
    """
    if source not in INSTRUCTIONS:
        raise unknown("source of instructions", source, INSTRUCTIONS)
    if n < 2:
        raise SteerlensError(f"{n} instructions can't be split; use 2 or more.")
    if source == "released":
        return _released(concepts, path, n)
    tables: dict[str, pd.Series] = {}
    notes = list(concepts.notes)
    with_prompts = []
    for concept in concepts.concepts:
        if source == "alpaca_eval":
            genre = "all"
        elif source == "genre":
            genre = concept.genre
        else:
            raise unknown("source of instructions", source, INSTRUCTIONS)
        if genre not in tables:
            every = _instructions(genre, path)
            tables[genre] = every.dropna()
            if missing := len(every) - len(tables[genre]):
                notes.append(f"{missing:,} instructions for {genre} are null: left out.")
        if len(tables[genre]) < n:
            raise SteerlensError(
                f"there are {len(tables[genre])} instructions for {genre}; {n} are wanted."
            )
        drawn = tables[genre].sample(n, random_state=concept.id)
        with_prompts.append(concept.with_prompts(drawn.astype(str).tolist()))
    return replace(concepts, concepts=tuple(with_prompts), notes=tuple(notes))


def _instructions(genre: str, path: Path | None) -> pd.Series:
    """Return all instructions for a genre, `all` for AlpacaEval's, in the order of their file."""
    if genre != "all" and genre not in OF_GENRE:
        raise unknown("genre", genre, OF_GENRE)
    table = ALPACA_EVAL if genre == "all" else OF_GENRE[genre]
    if path is None:
        return _column(_from_hub(table.address), table.address, (table.column,))
    files = [path] if genre == "all" else [path / f"{genre}{ending}" for ending in ENDINGS]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise SteerlensError(f"instructions: there is no file {' or '.join(map(str, files))}.")
    return _column(_from_file(file), str(file), ("instruction", "question"))


def _column(table: Any, name: str, columns: tuple[str, ...]) -> pd.Series:
    for column in columns:
        if column in table:
            return table[column]
    raise SteerlensError(f"{name} has no column {' or '.join(map(repr, columns))}.")


def _from_file(file: Path) -> pd.DataFrame:
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        return pd.read_json(io.StringIO(read_text(file)), lines=file.suffix == ".jsonl")
    except (OSError, ValueError) as error:
        raise SteerlensError(f"{file} is no table that can be read ({error}).") from error


def _from_hub(address: str) -> pd.DataFrame:
    from datasets import load_dataset

    kind = "parquet" if address.endswith(".parquet") else "json"
    try:
        data: Any = load_dataset(kind, data_files=address, split="train")
        return data.to_pandas()
    except MemoryError:
        raise
    except Exception as error:  # whatever a reader of somebody's files comes up with
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SteerlensError(f"can't read {address}: {line}") from error


def _released(concepts: ConceptSet, path: Path | None, n: int) -> ConceptSet:
    """Return the authors' instructions, `{"layer_feature": [instructions]}`; nulls are none."""
    if path is None:
        raise SteerlensError("released instructions need the authors' file.")
    try:
        content = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise SteerlensError(f"{path} is no JSON file that can be read ({error}).") from error
    if not isinstance(content, dict):
        raise SteerlensError(f"{path} is no JSON object.")
    with_prompts = []
    for concept in concepts.concepts:
        ref = concept.feature
        listed = content.get(f"{ref.layer}_{ref.feature}") if ref else None
        prompts = (
            [prompt for prompt in listed if prompt is not None] if isinstance(listed, list) else []
        )
        if len(prompts) < n:
            has = len(prompts) if isinstance(listed, list) else "no"
            raise SteerlensError(
                f"{path} has {has} instructions for concept {concept.id} ({concept.name!r}); {n} "
                "are wanted."
            )
        with_prompts.append(concept.with_prompts([str(prompt) for prompt in prompts[:n]]))
    return replace(concepts, concepts=tuple(with_prompts))
