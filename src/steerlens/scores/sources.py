"""Where a score that needs texts takes what features fire on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from steerlens.errors import SteerlensError, unknown
from steerlens.scores import ScoreConfig


@dataclass
class ReadsTexts(ScoreConfig):
    """Settings of a score that reads a corpus, or the examples that ship with an SAE instead."""

    source: str = "auto"
    """auto (shipped where the SAE has examples and no corpus is given, else corpus), corpus (our
    own pass over the `corpus` group), or shipped (the examples in `path`)."""
    path: str | None = None
    """File of examples; null = `sae.examples`."""
    context_length: int | None = None
    """Tokens in a piece of text at most; null = corpus.context_length."""

    SOURCES: ClassVar[Sequence[str]] = ("auto", "corpus", "shipped")

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if self.source not in self.SOURCES:
            raise self.unknown_source()
        if self.source != "shipped":
            return
        if not self.path:
            raise SteerlensError(
                f"source=shipped of score {self.method} needs sae.examples=FILE, which "
                "`steerlens examples FILE ...` writes."
            )
        if self.context_length is not None:
            raise self.refusal("context_length", "is for source=corpus, not for source=shipped")

    def unknown_source(self) -> SteerlensError:
        """Return the error for a source that the score doesn't know."""
        return unknown(f"source of score {self.method}", self.source, self.SOURCES)

    def enough_ships(self) -> bool:
        """Return whether shipped examples, whatever SAE's, hold all that these settings ask for."""
        return self.context_length is None

    def resolve_source(self, shipped: str | None, examples: str | None) -> None:
        """Decide where to take what features fire on from; see `ScoreConfig.resolve_source`."""
        if self.source == "auto":
            self.source = "shipped" if shipped and self.enough_ships() else "corpus"
        if self.source == "shipped" and self.path is None:
            self.path = examples

    def reads_corpus(self) -> bool:
        """Return whether our own pass is needed."""
        return self.source in ("auto", "corpus")

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ("corpus",) if self.reads_corpus() else ()

    def examples(self) -> Sequence[Path]:
        """Return the files of examples that the method reads."""
        return (Path(self.path),) if self.source == "shipped" and self.path else ()

    def files(self) -> Sequence[Path]:
        """Return the files that the numbers depend on."""
        return self.examples()
