"""What a run writes: its tables and its provenance, each as soon as something of it is finished."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.storage.files import write_json
from steerlens.storage.provenance import PROVENANCE_FILE, provenance

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject
    from steerlens.results.table import Table


class RunFolder:
    """A run's folder, in which a crash leaves whole files of all that was finished before it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self._seed = seed
        self._parts: dict[str, list[pd.DataFrame]] = {}
        self._facts: dict[str, Any] = {"model": None, "saes": {}, "corpus": None, "seconds": {}}

    def add(self, table: Table, rows: pd.DataFrame) -> None:
        """Add rows to a table, and write all of it."""
        parts = self._parts.setdefault(table.file, [])
        parts.append(rows)
        table.write(pd.concat(parts, ignore_index=True), self.path)

    def rows(self, table: Table) -> pd.DataFrame:
        """Give the rows that a table has so far."""
        parts = self._parts.get(table.file)
        return pd.concat(parts, ignore_index=True) if parts else table.frame([])

    def note(self, **facts: Any) -> None:
        """Note facts for provenance.json, which is written with the next stage."""
        self._facts |= facts

    def note_line(self, line: str) -> None:
        """Note a sentence that the report is to say, once."""
        lines = self._facts.setdefault("notes", [])
        if line not in lines:
            lines.append(line)

    def note_corpus(self, corpus: dict[str, Any] | None) -> None:
        """Note the corpus that was read, unless a stage before has noted more of it."""
        self._facts["corpus"] = self._facts["corpus"] or corpus

    def finish_stage(self, subject: Subject, stage: str, start: float, **facts: Any) -> None:
        """Write to provenance.json what a stage of one layer has used and how long it took.

        Args:
            subject: the layer's model and SAE.
            stage: its name.
            start: when it began, by `time.perf_counter`.
            **facts: further ones.
        """
        from steerlens.engine.subject.belonging import note_of_copy

        agreement = dataclasses.asdict(subject.lm.agreement)
        self._facts |= {"model": subject.lm.identity, "agreement": agreement, **facts}
        if note := note_of_copy(subject.lm, subject.sae):
            self.note_line(note)
        self._facts["saes"][subject.layer] = subject.identity
        seconds = self._facts["seconds"].setdefault(subject.layer, {})
        seconds[stage] = round(time.perf_counter() - start, 3)
        self.write_provenance()

    def write_provenance(self) -> None:
        """Write provenance.json with all that is noted."""
        write_json(self.path / PROVENANCE_FILE, provenance(self._facts, sys.argv, self._seed))
