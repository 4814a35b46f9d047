"""Text that a model produced, made safe and visible wherever it is shown.

A vocabulary holds newlines, ANSI escapes, right-to-left marks and lone accents. Printed as they
are, they break a table or, worse, drive the reader's terminal. Everything that shows tokens
(terminal, report, figures, W&B tables) goes through here; files keep the tokens as they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SPACE = "␣"
"""Shown for a space inside a token, where `the` and ` the` are different things."""

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
_MARKDOWN = re.compile(
    r"""
    \\(?=[!-/:-@\[-`{-~]|\Z)    # a backslash that would make what follows a plain character
    | [`*\[\]|~$]
    | (?<![^\W_])_ | _(?![^\W_])   # but not inside a word, where it means nothing
    | <(?=[A-Za-z/!?]|\Z) | &(?=[A-Za-z\#]|\Z)
    | :(?=//) | (?<=www)\.        # an address that would become a link
    """,
    re.VERBOSE,
)
"""What begins something in Markdown or HTML."""
_ENTITIES = {"<": "&lt;", "&": "&amp;", "|": "&#124;"}
"""Signs that not everything that shows Markdown takes as they are behind a backslash."""
_MARKDOWN_LINE = re.compile(
    r"^(?P<before>\s*(?:(?=[#>=])|(?=[-+](?:\s|[-+]|\Z))|\d+(?=[.)](?:\s|\Z))))(?!-\Z)"
)
"""What does so at the start of a line; but for a dash alone, as a table has it for null."""


def visible(text: str) -> str:
    """Return `text` in one line of printable characters; what can't be seen is written as an
    escape.
    """
    if _is_plain(text):
        return text
    return "".join(_visible(char, first=i == 0) for i, char in enumerate(text))


def printable(text: str) -> str:
    """Give one line of `text` with escapes for what can't be seen; its backslashes stay."""
    if text.isprintable():
        return text
    return "".join(char if char == "\\" else _visible(char, first=False) for char in text)


def with_interval(
    value: Any, low: Any, high: Any, spec: str = ".2f", unit: str = "", is_named: bool = False
) -> str:
    """Return `0.50 (0.40 to 0.60)`; the value alone where it has no interval, `-` for null.

    Args:
        value: the number.
        low: the lower end of its interval; null where there is none.
        high: the upper end.
        spec: how all three are formatted.
        unit: stands behind the value.
        is_named: whether the interval says what it is, as in a sentence:
            `0.50 (95 % interval 0.40 to 0.60)`.
    """
    texts = [
        format(number, spec) if isinstance(number, int | float) and number == number else None
        for number in (value, low, high)
    ]
    if texts[0] is None:
        return "-"
    if None in texts:
        return f"{texts[0]}{unit}"
    name = "95 % interval " if is_named else ""
    return f"{texts[0]}{unit} ({name}{texts[1]} to {texts[2]})"


def interval_of(
    row: Mapping[str, Any], name: str, spec: str = ".2f", is_named: bool = False
) -> str:
    """Return a number of a table's row with its interval, `name_low` to `name_high`."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return with_interval(row[name], low, high, spec, is_named=is_named)


def counted(n: int, noun: str) -> str:
    """Return `1 text`, `1,000 texts`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _is_plain(text: str) -> bool:
    """Whether `text` is visible as it is, as nearly all is; told without looking at characters."""
    # What isn't printable to Python are the categories C* and Z*, but for the space.
    if not text.isprintable() or "\\" in text:
        return False
    return text.isascii() or unicodedata.category(text[0])[0] != "M"


def _visible(char: str, first: bool) -> str:
    if char in _SHORT:
        return _SHORT[char]
    category = unicodedata.category(char)
    # C*: controls, direction marks, surrogates, unassigned; Z*: line breaks and odd spaces; a
    # combining mark (M*) without its base would sit on the character before the token.
    hidden = category[0] == "C" or (category[0] == "Z" and char != " ")
    if not (hidden or (first and category[0] == "M")):
        return char
    code = ord(char)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def visible_token(token: Any) -> str:
    """Return one token as it stands in a table; `-` for none, and spaces are shown."""
    if not isinstance(token, str):
        return "-"
    return visible(token).replace(" ", SPACE) if token else "''"


def visible_tokens(tokens: Any, n: int = 5) -> str:
    """Return the first `n` tokens with a space between them; `-` for none."""
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        return "-"
    return " ".join(visible_token(token) for token in list(tokens)[:n]) or "-"


def number(value: Any, spec: str) -> str:
    """Return a number in the format `spec`; `-` for null, which is None or pandas' NA."""
    return format(value, spec) if isinstance(value, int | float) else "-"


def safe_range(row: Mapping[str, Any]) -> str:
    """Return the tried factors around the best one that its rule allows, `1 to 8`; `-` for none.

    Args:
        row: of `steering.parquet`; earlier ones have no range.
    """
    low, high = (number(row.get(f"safe_factor_{end}"), "g") for end in ("low", "high"))
    return low if low == high else f"{low} to {high}"


def markdown(visible: str) -> str:
    """Return text that is already `visible`, in a form that Markdown and HTML show as it is; with
    backslash or entity only where one is needed, so that it can be read as it stands.
    """
    escaped = _MARKDOWN.sub(lambda sign: _ENTITIES.get(sign[0], f"\\{sign[0]}"), visible)
    return _MARKDOWN_LINE.sub(r"\g<before>\\", escaped)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def csv_text(table: pd.DataFrame) -> str:
    """Give `table` as CSV in which no cell is a formula to a spreadsheet.

    Texts that begin like one, and are no number, begin with an apostrophe instead.
    """
    safe = table.astype(object).map(_no_formula)
    return safe.set_axis([_no_formula(name) for name in table.columns], axis=1).to_csv(index=False)


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        cell = f"'{cell}"
    return cell.replace("\r", "\n")  # which alone is quoted
