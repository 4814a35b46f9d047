"""A page as one HTML file: skeleton, style, scripts and data, and files of data beside it.

Whatever a model or a corpus wrote is data in a JSON block that no script of the page takes for
markup, and the page's Content-Security-Policy runs no script but ours, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from steerlens.report.page.contents import Card, Page
from steerlens.report.page.scores import unsigned
from steerlens.results import PAGE_DATA, PAGE_FILE
from steerlens.storage.files import make_folder, write_text

ROOM = Path(__file__).parent
CHARTS = ROOM / "vendor" / "echarts" / "echarts.common.min.js"
SCRIPTS = (
    *("core.js", "charts.js", "scatter.js", "scores.js", "table.js", "steering.js", "card.js"),
    *("concepts.js", "table1.js", "sweep.js", "page.js"),
)
"""Our own, in the order in which they run."""
LIVE_SCRIPT = "live.js"
"""Before the last of them, in a page that a server stands behind."""

EMBEDDED_BYTES = 2_500_000
"""Cards in the page itself, at most so many bytes of JSON."""

CARDS_OF_A_FILE, WEIGHT_OF_STEERED = 400, 25
"""Cards in a file beside it, what a click loads; one with steered texts counts as so many."""


def write_html(
    page: Page, cards: Iterable[tuple[str, Card]], n_embedded: int, folder: Path
) -> Path:
    """Write `report.html` into `folder`, and the cards that don't belong into it beside it.

    Args:
        page: without cards.
        cards: under `layer/feature`, the most wanted first.
        n_embedded: so many of them lie in the page, as far as `EMBEDDED_BYTES` allow.
        folder: of the run.
    """
    cards = iter(cards)
    embedded: list[str] = []
    bytes_left = EMBEDDED_BYTES
    beside: list[tuple[str, Card]] = []
    for key, card in itertools.islice(cards, n_embedded):
        entry = f"{json.dumps(key)}:{to_json(card)}"
        if len(entry) > bytes_left:
            beside.append((key, card))
            break
        embedded.append(entry)
        bytes_left -= len(entry)
    files: list[str] = []
    file_of: dict[str, int] = {}
    for group in _groups(itertools.chain(beside, cards)):
        file_of |= dict.fromkeys(group, len(files))
        files.append(to_json(group))
    digest = hashlib.sha256()
    for text in (*embedded, *files):
        digest.update(text.encode())
    name = digest.hexdigest()[:12]
    _write_data(files, name, folder)
    arrays: list[str] = []
    members = {field.name: getattr(page, field.name) for field in fields(page)}
    data = to_json(members | {"files": _file_numbers(page, file_of), "id": name}, arrays)
    text_of_cards = "{" + ",".join(embedded) + "}"
    path = folder / PAGE_FILE
    is_live = page.live is not None
    write_text(path, html(page.title, data, text_of_cards, arrays, bool(files), is_live))
    return path


def _groups(cards: Iterable[tuple[str, Card]]) -> Iterator[dict[str, Card]]:
    """Give the cards of one file after the other."""
    group: dict[str, Card] = {}
    weight = 0
    for key, card in cards:
        group[key] = card
        weight += WEIGHT_OF_STEERED if card.steered else 1
        if weight >= CARDS_OF_A_FILE:
            yield group
            group, weight = {}, 0
    if group:
        yield group


def _file_numbers(page: Page, file_of: Mapping[str, int]) -> np.ndarray:
    """Give the file of each feature's card, from 1 on, in the order of the table; 0 = the page."""
    if page.features is None or not file_of:
        return unsigned([])
    keys = zip(page.features.layer.tolist(), page.features.feature.tolist(), strict=True)
    return unsigned([file_of.get(f"{layer}/{feature}", -1) + 1 for layer, feature in keys])


def _write_data(files: Sequence[str], name: str, folder: Path) -> None:
    """Write the files beside the page, and remove those of an earlier one."""
    data = folder / PAGE_DATA
    names = [f"{number:03d}.js" for number in range(len(files))]
    for earlier in data.glob("*.js"):
        if earlier.name not in names:
            earlier.unlink(missing_ok=True)
    if not files:
        if data.is_dir() and not any(data.iterdir()):
            data.rmdir()
        return
    make_folder(data)
    for number, text in enumerate(files):
        write_text(data / names[number], f'steerlens.addCards("{name}",{number},{text});\n')


def html(
    title: str,
    data: str,
    cards: str,
    arrays: Sequence[str],
    has_files: bool,
    is_live: bool = False,
) -> str:
    """Give the page's text, of `data` and `cards` that are JSON and `arrays` that are base64; a
    live page may ask its server.
    """
    style = _asset("page.css") + _asset("live.css") * is_live
    charts = CHARTS.read_text(encoding="utf-8")
    scripts = [*SCRIPTS[:-1], *[LIVE_SCRIPT] * is_live, SCRIPTS[-1]]
    script = "\n".join(_asset(name) for name in scripts)
    # What is hashed is the text between the tags, to the byte.
    sources = [f"'{_digest(text)}'" for text in (charts, script)]
    policy = "; ".join(
        [
            "default-src 'none'",
            # Scripts that ours adds: files of data beside the page.
            f"script-src {' '.join(sources)}{DATA_SOURCE if has_files else ''}",
            f"style-src '{_digest(style)}'",
            "img-src data: blob:",
            *["connect-src 'self'"] * is_live,
            *("base-uri 'none'", "form-action 'none'"),
        ]
    )
    return _template().render(
        title=title,
        policy=policy,
        style=style,
        charts=charts,
        script=script,
        data=data,
        cards=cards,
        arrays=arrays,
    )


DATA_SOURCE = " 'self'"
"""Where files of data come from: the folder of the page."""


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOM),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja")


def _asset(name: str) -> str:
    return (ROOM / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def to_json(value: Any, arrays: list[str] | None = None) -> str:
    """Give `value` as JSON that may stand in HTML and in a script: no `<`, `>` or `&` as it is.

    Dataclasses become objects, and an array the number of its block: its bytes, base64, are added
    to `arrays`. Half of a surrogate pair, which no file can hold, becomes `?`.
    """

    def fields_of(part: Any) -> Any:
        if arrays is not None and isinstance(part, np.ndarray):
            little = part.astype(part.dtype.newbyteorder("<"))
            arrays.append(base64.b64encode(little.tobytes()).decode())
            kind = f"{little.dtype.kind}{little.dtype.itemsize}"
            return {"kind": kind, "block": len(arrays) - 1}
        return _fields(part)

    text = json.dumps(
        value, default=fields_of, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace").decode()


def _fields(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        members = {name: getattr(value, name) for name in _names(type(value))}
        if isinstance(value, Card):
            return {name: member for name, member in members.items() if member not in _EMPTY}
        return members
    if callable(item := getattr(value, "item", None)):  # a number of NumPy
        return item()
    raise TypeError(f"{type(value).__name__} is no part of a page")


_EMPTY: tuple[Any, ...] = (None, [], ())


@cache
def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]
