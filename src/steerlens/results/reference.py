"""The published scores that a run is laid beside, as they lie in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steerlens.errors import SteerlensError
from steerlens.results import FEATURES, Table
from steerlens.storage.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = Table(file="reference.parquet", keys=FEATURES.keys, columns=FEATURES.columns)
"""The columns of the table of features, and `best_factor`."""

REFERENCE_FILE = "reference.json"


@dataclass(frozen=True)
class Reference:
    """Published scores: the listed features, and what is wrong with the files, in sentences."""

    table: pd.DataFrame
    model: str
    """The authors' name of the model."""
    findings: list[str]
    alone: bool = False
    """Whether they are the run's own table of features, and nothing was scored."""

    def write(self, folder: Path) -> None:
        """Write the files into `folder`, atomically."""
        REFERENCE.write(self.table, folder)
        content = {"model": self.model, "alone": self.alone, "findings": self.findings}
        write_json(folder / REFERENCE_FILE, content)

    @classmethod
    def read(cls, folder: Path) -> Reference:
        """Return what `write` has written."""
        content = read_json(folder / REFERENCE_FILE)
        try:
            findings = [str(finding) for finding in content["findings"]]
            return cls(
                REFERENCE.read(folder), str(content["model"]), findings, bool(content["alone"])
            )
        except (KeyError, TypeError) as error:
            raise SteerlensError(
                f"{folder / REFERENCE_FILE} can't be read; run the job again."
            ) from error
