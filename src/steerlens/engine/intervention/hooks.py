"""The edit as hooks of a forward: which positions, read and written where."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from steerlens.engine.intervention import Operation, Targets, edited, encode, looks_back
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError, unknown


class Policy(NamedTuple):
    """Which positions `steer.positions` edits."""

    of_prompt: int | None
    """How many of the prompt's last ones; None = all."""
    new_tokens: bool


POLICIES = {
    "last": Policy(1, True),
    "all": Policy(None, True),
    "generated": Policy(0, True),
    "prompt": Policy(None, False),
}


def policy_named(positions: str) -> Policy:
    """Return the policy of `steer.positions`; refuses an unknown one."""
    if not isinstance(positions, str) or positions not in POLICIES:
        raise unknown("steer.positions", positions, POLICIES)
    return POLICIES[positions]


class Edits(Protocol):
    """What is done to the rows of a batch while their texts are generated."""

    is_prompt: bool
    """Set before each forward by whoever runs it."""
    fired: int
    """How many forwards were edited."""

    @property
    def first_block(self) -> int | None:
        """The first block that an edit can change, within it or at its input, which may be after
        the last; None = any.
        """
        ...

    @property
    def factor_B(self) -> torch.Tensor:
        """(B,): 0 in rows that aren't edited."""
        ...

    @property
    def dose_B(self) -> torch.Tensor | None:
        """(B,): how long the changes so far were, beside the vectors that they changed: the mean
        over positions; None where the edit isn't of one vector.
        """
        ...

    @property
    def steers(self) -> bool:
        """Whether any row is edited."""
        ...

    @property
    def edits_new_tokens(self) -> bool:
        """Say whether tokens that are generated are edited, too."""
        ...

    def hooks(self) -> list[tuple[str, Any]]:
        """Return, for `run_with_hooks` or `hooks` of a TransformerBridge; none if nothing is
        steered.
        """
        ...

    def first_position(self, length: int) -> int:
        """Return where a forward of a prompt must begin to see every edit, and to give logits."""
        ...

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch only."""
        ...


class NoEdits:
    """No edit in any of B rows."""

    is_prompt = True
    fired = 0
    first_block = None
    steers = False
    edits_new_tokens = False

    def __init__(self, n_rows: int) -> None:
        self.factor_B = torch.zeros(n_rows)
        self.dose_B = torch.zeros(n_rows)

    def hooks(self) -> list[tuple[str, Any]]:
        """Return no hook."""
        return []

    def first_position(self, length: int) -> int:
        """Return where a forward of a prompt must begin to give logits."""
        return length - 1

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.factor_B, self.dose_B = self.factor_B[rows], self.dose_B[rows]


class SteeringHooks:
    """Edits what passes through a subject's site, each row of the batch in its own way.

    A forward is told to be a prompt or new tokens by `is_prompt`, which whoever runs it sets.
    """

    def __init__(
        self,
        subject: Subject,
        operation: Operation,
        targets: Targets,
        positions: str = "last",
        n_prompt_B: Sequence[int] | None = None,
    ) -> None:
        """`n_prompt_B` are the prompts' lengths in tokens, BOS included, without the padding before
        them; None = there is none.
        """
        self.targets = targets
        self.is_prompt = True
        self.fired = 0
        """How many forwards were edited."""
        self._subject = subject
        self._operation = operation
        self._policy = policy_named(positions)
        self._seen: dict[str, torch.Tensor] = {}
        self._looks_back = looks_back(subject.sae)
        self._past_BLD: torch.Tensor | None = None
        self._steers = bool((targets.factor_B != 0).any())
        self._n_prompt_B = None if n_prompt_B is None else torch.tensor(n_prompt_B)
        device = targets.factor_B.device
        self._dose_sum_B = torch.zeros(len(targets), dtype=torch.float64, device=device)
        self._dosed_B = torch.zeros_like(self._dose_sum_B)

    @property
    def first_block(self) -> int:
        """Give the first block that the edit changes, after the one whose output it is made at."""
        return self._subject.site.first_changed_block

    @property
    def factor_B(self) -> torch.Tensor:
        """Give each row's factor, (B,)."""
        return self.targets.factor_B

    @property
    def steers(self) -> bool:
        """Whether any row's factor isn't 0."""
        return self._steers

    @property
    def dose_B(self) -> torch.Tensor:
        """Give the relative dose of each row so far: norm of the change / norm of the vector, the
        mean over edited positions, (B,) float64; 0 where none was edited.
        """
        return self._dose_sum_B / self._dosed_B.clamp(min=1)

    def hooks(self) -> list[tuple[str, Any]]:
        """Return, for `run_with_hooks` or `hooks` of a TransformerBridge; none if nothing is
        steered.
        """
        if not self._steers:
            return []
        site = self._subject.site
        before = [name for name in site.read_before_write if name != site.write]
        return [
            *((name, partial(self._read, name=name)) for name in before),
            (site.write, self._write),
        ]

    def first_position(self, length: int) -> int:
        """Return where a forward of a prompt must begin to see every edit, and to give logits."""
        return 0 if self._looks_back or self._policy.of_prompt is None else length - 1

    @property
    def edits_new_tokens(self) -> bool:
        """Say whether tokens that are generated are edited, too."""
        return self._policy.new_tokens

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch only."""
        rows = rows.to(self.targets.factor_B.device)
        self.targets = self.targets.rows(rows)
        self._dose_sum_B, self._dosed_B = self._dose_sum_B[rows], self._dosed_B[rows]
        if self._n_prompt_B is not None:
            self._n_prompt_B = self._n_prompt_B[rows.cpu()]
        if self._past_BLD is not None:
            self._past_BLD = self._past_BLD[rows.to(self._past_BLD.device)]

    def _read(self, x: torch.Tensor, hook: Any, name: str) -> None:
        # `hook.name` may be the other name of the same place.
        self._seen[name] = x.flatten(2)

    def _write(self, out: torch.Tensor, hook: Any) -> torch.Tensor:
        out_BLD = out.flatten(2)
        values = {**self._seen, self._subject.site.write: out_BLD}
        parts = [values[name] for name in self._subject.site.read_before_write]
        x_BLD = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        positions = self._positions(out_BLD.shape[1])
        if self._looks_back:
            if self.is_prompt or self._past_BLD is None:
                self._past_BLD = x_BLD
            else:
                self._past_BLD = torch.cat([self._past_BLD, x_BLD], dim=1)
            x_BLD = self._past_BLD
        if positions is None:
            return out
        if len(self.targets) not in (1, len(out_BLD)):
            raise SteerlensError(
                f"{len(self.targets)} rows are steered, but the batch has {len(out_BLD)}."
            )
        targets = self.targets
        if len(targets) < len(out_BLD):
            targets = targets.rows(torch.zeros(len(out_BLD), dtype=torch.int64))
        self.fired += 1
        n_before = x_BLD.shape[1] - out_BLD.shape[1]
        at = slice(n_before + positions.start, None)
        if not self._looks_back:
            x_BLD, at = x_BLD[:, positions], slice(None)
        part_BLD = out_BLD[:, positions]
        sae, keep_error = self._subject.sae, self._operation.keep_error
        encoded = encode(sae, x_BLD, part_BLD, keep_error, at)
        new_BLD = edited(self._operation, encoded, part_BLD, targets).to(out_BLD)
        self._add_dose(part_BLD, new_BLD)
        if positions.start > 0:
            new_BLD = torch.cat([out_BLD[:, : positions.start], new_BLD], dim=1)
        return new_BLD.reshape(out.shape)

    def _add_dose(self, before_BLD: torch.Tensor, after_BLD: torch.Tensor) -> None:
        """Count edited positions, the last ones of the forward; padding has none."""
        before_BLD = before_BLD.float()
        change_BL = (after_BLD.float() - before_BLD).norm(dim=-1)
        dose_BL = (change_BL / before_BLD.norm(dim=-1)).to(self._dose_sum_B)
        counts_BL = torch.ones_like(dose_BL)
        if self.is_prompt and self._n_prompt_B is not None:
            length = dose_BL.shape[1]
            from_end_L = torch.arange(length, 0, -1, device=dose_BL.device)
            counts_BL = (from_end_L <= self._n_prompt_B.to(dose_BL.device)[:, None]).double()
        self._dose_sum_B = self._dose_sum_B + torch.where(counts_BL > 0, dose_BL, 0).sum(dim=-1)
        self._dosed_B = self._dosed_B + counts_BL.sum(dim=-1)

    def _positions(self, length: int) -> slice | None:
        """Return the positions of this forward that are edited; they are its last ones."""
        n_edited = self._policy.of_prompt if self.is_prompt else int(self._policy.new_tokens)
        if n_edited == 0:
            return None
        return slice(length - n_edited if self.is_prompt and n_edited else 0, length)
