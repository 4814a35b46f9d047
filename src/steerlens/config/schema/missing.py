"""What OmegaConf takes for a value that has to be given."""

from __future__ import annotations

from typing import Any

MISSING: Any = "???"
