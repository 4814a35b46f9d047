"""What a cell of a corpus's column holds: a text, nothing, or a chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steerlens.errors import SteerlensError

Chat = Sequence[Mapping[str, str]]
"""Messages, each with `role` and `content`."""

Render = Callable[[Chat], str]
"""Writes a chat as the text that a model reads."""


def contents(chat: Chat) -> str:
    """Write the messages of a chat one below the other, without roles."""
    return "\n".join(message["content"] for message in chat)


def text_of(value: Any, render: Render | None, column: str) -> str:
    """Give the text of a cell; empty for null, which is no text.

    Args:
        value: of the cell.
        render: writes chats as texts; None where none can be read.
        column: the setting that chose it, for the error.

    Raises:
        SteerlensError: the cell holds something else than a text or a chat.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.removeprefix("\ufeff")
    if not is_chat(value):
        cells = "objects" if isinstance(value, Mapping) else f"values like {value!r:.40}"
        if isinstance(value, list):
            cells = "lists" if value else "empty lists"
        raise SteerlensError(
            f"{column} holds {cells}, no texts; choose a column of texts, or of chats, "
            "which are lists of messages with role and content."
        )
    if render is None:
        raise SteerlensError(f"{column} holds chats, no texts; choose a column of texts.")
    return render(value)


def is_chat(value: Any) -> bool:
    """Tell whether `value` is a list of messages with a role and a text as content."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )
