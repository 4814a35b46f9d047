"""What every figure that a test draws must have."""

from __future__ import annotations

import re
from typing import Any

import pytest

from steerlens.report.figures import style


@pytest.fixture(autouse=True)
def captioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no figure be drawn without how many of what it was measured on, and how."""
    drawn = style.headline

    def headline(figure: Any, title: str, counted: str, computed: str) -> None:
        assert re.search(r"\b[\d,]+ [a-z]", counted) or title == "title", (title, counted)
        assert len(computed) > 8, (title, computed)
        drawn(figure, title, counted, computed)

    monkeypatch.setattr(style, "headline", headline)
