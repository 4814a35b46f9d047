"""Edits that aren't directions, each row of a batch with its own concept and factor.

They take the place of `intervention.hooks.SteeringHooks` in `generation.decode`, and in
`intervention.hooked` for the model's own forwards. The model is never changed: all is hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


class RowEdits:
    """What LoReFT and LoRA share: which row has which concept, and how strongly.

    The factor multiplies what the method adds, so that 1 is the method as it was trained, which is
    all that AxBench has; 0 is no edit.
    """

    edits_new_tokens = True
    first_block = None
    dose_B: torch.Tensor | None = None
    """Their changes are made in several layers, so that there is no one vector to compare with."""

    def __init__(
        self, subject: Subject, n_concepts: int, concept_B: Sequence[int], factor_B: Sequence[float]
    ) -> None:
        if len(concept_B) != len(factor_B):
            raise SteerlensError(f"{len(concept_B)} concepts for {len(factor_B)} factors.")
        for concept in concept_B:
            if not 0 <= concept < n_concepts:
                raise SteerlensError(f"there is no concept {concept}: it is 0 to {n_concepts - 1}.")
        self.is_prompt = True
        self.fired = 0
        """How many forwards were edited."""
        self.concept_B = torch.tensor(concept_B)
        self.factor_B = torch.tensor(factor_B, dtype=torch.float32)
        self._subject = subject
        self._steers = bool((self.factor_B != 0).any())

    @property
    def steers(self) -> bool:
        """Whether any row's factor isn't 0."""
        return self._steers

    def hooks(self) -> list[tuple[str, Any]]:
        """Return, for `run_with_hooks` or `hooks` of a TransformerBridge; none if nothing is
        steered.
        """
        return self._hooks() if self._steers else []

    def first_position(self, length: int) -> int:
        """Return all positions of the prompt have to run with the edit on."""
        return 0

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.concept_B, self.factor_B = self.concept_B[rows], self.factor_B[rows]

    def _hooks(self) -> list[tuple[str, Any]]:
        raise NotImplementedError

    def _rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the concept of each row of `x` and its factor (B, 1, 1); one row stands for
        all.
        """
        concept_B, factor_B = self.concept_B, self.factor_B
        if len(concept_B) not in (1, len(x)):
            raise SteerlensError(f"{len(concept_B)} rows are steered, but the batch has {len(x)}.")
        if len(concept_B) < len(x):
            concept_B, factor_B = concept_B.expand(len(x)), factor_B.expand(len(x))
        return concept_B.to(x.device), factor_B.to(x.device)[:, None, None]
