"""The engine: one prompt's last position, run in many rows that differ only from the hook on.

The edit changes nothing but the last position's vector at the hook where it is written. So the
prompt runs once and keeps its keys and values; then the last token runs in one row up to the hook,
which turns that row into B, and only what comes after it sees B rows (the block adds the one row of
the residual stream to the B rows of a sub-layer's output). It is exact: position by position, the
rows compute what B separate forwards would. Some models prepare for a number of rows before their
first block (BLOOM its ALiBi, say): theirs run in B rows from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from steerlens.engine.padding import padded, with_rows
from steerlens.engine.subject import Subject
from steerlens.engine.subject.forward import copied, final_vectors, new_cache, rows_of_one
from steerlens.engine.subject.site import never_fires

ROWS_ON_CPU = 512
"""With more, a block's vectors no longer fit in memory that the allocator uses again, and new pages
for every block cost a tenth of the time."""


class LastPosition:
    """A prompt whose last position can be run again from the SAE's hook on, in many rows."""

    def __init__(self, subject: Subject, tokens_1L: torch.Tensor) -> None:
        self._subject = subject
        self._bridge = subject.lm.bridge
        self._length = int(tokens_1L.shape[1])
        self._token_11 = tokens_1L[:, -1:]
        self._cache = new_cache(self._bridge)
        with torch.no_grad():
            names = dict.fromkeys([*subject.site.read_before_write, subject.site.write])
            parts_of: dict[str, list[torch.Tensor]] = {name: [] for name in names}

            def catch(x: torch.Tensor, hook: Any, name: str) -> None:
                parts_of[name].append(x.flatten(2))

            look = [(name, partial(catch, name=name)) for name in names]
            if self._length > 1:
                self._run(tokens_1L[:, :-1], look, self._cache)
            self.h_D = self._run(self._token_11, look, copied(self._cache))[0]
        for name, values in parts_of.items():
            if not values:
                raise never_fires(name, subject.lm)
        by_hook = {name: torch.cat(values, dim=1) for name, values in parts_of.items()}
        self.x_1LD = torch.stack([by_hook[name] for name in subject.site.read_before_write]).sum(0)
        """(1, L, D): the unsteered vectors that the SAE encodes."""
        self.out_11D = by_hook[subject.site.write][:, -1:]
        """(1, 1, D): the unsteered vector that the edit changes, at the last position."""

    def run(self, out_BD: torch.Tensor, full: int) -> torch.Tensor:
        """Return the final normed vectors (B, D), one for each row of vectors at the hook of the
        edit.

        The same bits for a row in every batch, where none has more than `full` rows.
        """
        return self.run_reading(out_BD, full, ())[0]

    @torch.no_grad()
    def run_reading(
        self, out_BD: torch.Tensor, full: int, hook_names: Sequence[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return what `run` does, and the vectors (B, D) that pass through other hooks.

        Hooks before the edit give B times the same vector.
        """
        n_rows, device = len(out_BD), out_BD.device
        out_BD = with_rows(out_BD, padded(n_rows, full, device))
        at_once = ROWS_ON_CPU if device.type == "cpu" else len(out_BD)
        parts = [self._run_rows(rows_BD, hook_names) for rows_BD in out_BD.split(at_once)]
        h_BD = torch.cat([h for h, _ in parts])[:n_rows]
        return h_BD, {
            name: torch.cat([read[name] for _, read in parts])[:n_rows] for name in hook_names
        }

    def _run_rows(
        self, out_BD: torch.Tensor, hook_names: Sequence[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        read: dict[str, torch.Tensor] = {}

        def expand(out_11D: torch.Tensor, hook: Any) -> torch.Tensor:
            return out_BD.to(out_11D).reshape(-1, *out_11D.shape[1:])

        def catch(x_B1D: torch.Tensor, hook: Any, name: str) -> None:
            read[name] = x_B1D[:, -1].flatten(1).expand(len(out_BD), -1)

        # In this order, so that the hook of the edit gives what was written there.
        hooks: list[tuple[str, Any]] = [(self._subject.site.write, expand)]
        hooks += [(name, partial(catch, name=name)) for name in hook_names]
        token_B1, first_block = self._token_11, self._first_row_block
        if self._subject.lm.rows_from_start:
            token_B1 = token_B1.expand(len(out_BD), -1)
        h_BD = self._run(token_B1, hooks, rows_of_one(self._cache, len(out_BD), first_block))
        for name in hook_names:
            if name not in read:
                raise never_fires(name, self._subject.lm)
        return h_BD, read

    @property
    def _first_row_block(self) -> int:
        return 0 if self._subject.lm.rows_from_start else self._subject.site.first_row_block

    def bytes_per_row(self) -> int:
        """Return the memory that one more row takes at its peak, a generous estimate."""
        cfg = self._bridge.cfg
        size = self._subject.lm.dtype.itemsize
        blocks = self._subject.lm.n_layers - self._first_row_block
        keys_values = self._subject.lm.kv_numbers * (self._length + 1) * blocks
        d_mlp = cfg.d_mlp or 4 * cfg.d_model
        return size * (keys_values + 5 * d_mlp + 16 * cfg.d_model + 8 * cfg.n_heads * cfg.d_head)

    def _run(
        self, tokens_BL: torch.Tensor, hooks: list[tuple[str, Any]], cache: Any
    ) -> torch.Tensor:
        """Return the final normed vectors of the last position, one for each row that comes out."""
        return final_vectors(self._bridge, tokens_BL, hooks, cache, last=True)
