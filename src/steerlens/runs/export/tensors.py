"""Vectors as safetensors with a JSON card beside, and the Python file that steers with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from steerlens.errors import SteerlensError
from steerlens.runs.export import Card, SteeringVector, card_path, check_together, write_card
from steerlens.storage.files import atomic_write, read_json, write_text

SNIPPET = Path(__file__).with_name("steer.py")

NOTE = (
    "Constant vectors, to be added at `side` of `module` in the Hugging Face model; steer.py does "
    "it with Transformers alone."
)


def export_safetensors(path: Path, vectors: Sequence[SteeringVector]) -> None:
    """Write `vectors` to `path` and their cards to `path`.json, atomically each.

    Raises:
        SteerlensError: for no vector, two of the same feature, vectors of two models, or a `path`
            that doesn't end with `.safetensors`.
    """
    check_together(path, vectors, (".safetensors",))
    with atomic_write(path) as file:
        file.write(save({vector.card.name: vector.vector_D for vector in vectors}))
    write_card(path, vectors, NOTE)


def load_safetensors(path: Path) -> list[SteeringVector]:
    """Return the vectors in a file of `export_safetensors`, with their cards."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SteerlensError(f"{path} is missing or no whole safetensors file.") from error
    about: Any = read_json(card_path(path))
    try:
        cards: dict[str, Card] = {}
        for name, fields in about["vectors"].items():
            lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
            cards[name] = Card(**{**fields, **lists})
    except (TypeError, KeyError, AttributeError) as error:
        raise SteerlensError(f"{card_path(path)} is missing or no card of steerlens.") from error
    if cards.keys() != tensors.keys():
        raise SteerlensError(f"{card_path(path)} is the card of another file than {path}.")
    return [SteeringVector(tensors[name], card) for name, card in cards.items()]


def export_snippet(path: Path) -> None:
    """Write the Python file that steers a plain Transformers model with exported vectors."""
    write_text(path, SNIPPET.read_text(encoding="utf-8"))
