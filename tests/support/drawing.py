"""Figures without most of the time that drawing them takes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="
)
"""A PNG."""


@contextmanager
def coarse() -> Iterator[None]:
    """While it lasts, nothing is laid out, PNGs are coarse and PDFs empty."""
    from matplotlib.figure import Figure

    whole = Figure.savefig

    def savefig(figure: Any, file: Any, format: str, **settings: Any) -> None:
        if format == "png":
            whole(figure, file, format=format, dpi=20, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        patch.setattr(Figure, "draw_without_rendering", _not_at_all)
        yield


@contextmanager
def undrawn() -> Iterator[None]:
    """While it lasts, figures are made, but their files hold a pixel."""
    from matplotlib.figure import Figure

    def savefig(figure: Any, file: Any, format: str, **settings: Any) -> None:
        file.write(ONE_PIXEL if format == "png" else b"%PDF-1.4\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        patch.setattr(Figure, "draw_without_rendering", _not_at_all)
        yield


def _not_at_all(figure: Any) -> None:
    """Find no places for the parts of `figure`: that takes as long as drawing it."""
