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
    chat = chat_of(value)
    if chat is None:
        cells = "objects" if isinstance(value, Mapping) else f"values like {value!r:.40}"
        if isinstance(value, list):
            cells = "lists" if value else "empty lists"
        raise SteerlensError(
            f"{column} holds {cells}, no texts; choose a column of texts, or of chats, "
            "which are lists of messages with role and content."
        )
    if render is None:
        raise SteerlensError(f"{column} holds chats, no texts; choose a column of texts.")
    return render(chat)


def chat_of(value: Any) -> Chat | None:
    """Return the messages of a list of objects with a role and a content; None for all else.

    A content is a text, a list of parts of which each is a text, or null: a call of a tool, say,
    which says nothing.
    """
    if not isinstance(value, list) or not value:
        return None
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return None
        content = _content(message.get("content", False))
        if content is None:
            return None
        messages.append({**message, "content": content})
    return messages


def _content(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        return None
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in value]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None
