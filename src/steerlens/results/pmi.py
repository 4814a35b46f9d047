"""The file of PMI: how success tokens go with the feature's first logit-lens token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from steerlens.errors import SteerlensError
from steerlens.results import SUBJECT
from steerlens.storage.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

PMI_FILE = "pmi.json"


@dataclass(frozen=True)
class Pmi:
    """PMI of success tokens with the feature's first logit-lens token, and what was left out."""

    pairs: pd.DataFrame
    """One row per (feature, success token): its `role`, the words `token` and `top_token`, `times`
    generated, windows with each (`token_count`, `top_count`) and with both (`together`), `pmi`."""
    windows: int
    dropped: dict[str, int]
    """Pairs left out, by reason."""

    TYPES: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(SUBJECT, "object"),
        "layer": "int64",
        "feature": "int64",
        **dict.fromkeys(("role", "token", "top_token"), "object"),
        **dict.fromkeys(("times", "token_count", "top_count", "together"), "int64"),
        "pmi": "float64",
    }
    """The columns of `pairs`."""

    def content(self) -> dict[str, Any]:
        """Give the content of the file."""
        pairs = self.pairs.to_dict("records")
        return {"windows": self.windows, "dropped": self.dropped, "pairs": pairs}

    def write(self, folder: Path) -> None:
        """Write the file into `folder`, atomically."""
        write_json(Path(folder) / PMI_FILE, self.content())

    @classmethod
    def read(cls, folder: Path) -> Pmi:
        """Return the content of the file in `folder`; refuses one that isn't whole."""
        import pandas as pd

        path = Path(folder) / PMI_FILE
        content = read_json(path)
        try:
            pairs = {name: [pair[name] for pair in content["pairs"]] for name in cls.TYPES}
            dropped = {str(reason): int(n) for reason, n in content["dropped"].items()}
            frame = pd.DataFrame(pairs).astype(dict(cls.TYPES))
            return cls(frame, int(content["windows"]), dropped)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SteerlensError(
                f"{path} can't be read: it is damaged or no table of PMI; run the job again."
            ) from error
