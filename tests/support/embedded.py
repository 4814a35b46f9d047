"""The embedded default, where it has been built."""

from __future__ import annotations

from pathlib import Path

import pytest

import steerlens

FOLDER = Path(steerlens.__file__).parent / "embedded"
RELEASES = sorted(path.name for path in FOLDER.glob("sae-*"))

needs_embedded = pytest.mark.skipif(
    not (FOLDER / "card.json").is_file(),
    reason="the embedded default isn't built; run python experiments/embedded/build.py",
)
