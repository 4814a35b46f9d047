"""The engine: one prompt's last position, run in many rows that differ only from the hook on.

The edit changes nothing but the last position's vector at the hook where it is written. So the
prompt runs once and keeps its keys and values; then the last token runs in one row up to the hook,
which turns that row into B, and only what comes after it sees B rows (the block adds the one row of
the residual stream to the B rows of a sub-layer's output). It is exact: position by position, the
rows compute what B separate forwards would.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch

from steerlens.errors import SteerlensError
from steerlens.padding import padded, with_rows
from steerlens.subject import Subject
from steerlens.subject.site import never_fires

ROWS_ON_CPU = 512
"""With more, a block's vectors no longer fit in memory that the allocator uses again, and new pages
for every block cost a tenth of the time."""


class LastPosition:
    """A prompt whose last position can be run again from the SAE's hook on, in many rows."""

    def __init__(self, subject: Subject, tokens_1L: torch.Tensor) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        self._subject = subject
        self._bridge = subject.lm.bridge
        self._length = int(tokens_1L.shape[1])
        self._token_11 = tokens_1L[:, -1:]
        hf_model: Any = self._bridge.original_model
        self._cache = DynamicCache(config=hf_model.config)
        if not all(isinstance(layer, DynamicLayer) for layer in self._cache.layers):
            raise SteerlensError(
                f"{subject.lm.name} ({hf_model.config.model_type}) remembers its past by more than "
                "keys and values, which steerlens can't expand to rows yet."
            )
        with torch.no_grad():
            names = dict.fromkeys([*subject.site.read_before_write, subject.site.write])
            seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}

            def catch(x: torch.Tensor, hook: Any, name: str) -> None:
                seen[name].append(x.flatten(2))

            look = [(name, partial(catch, name=name)) for name in names]
            if self._length > 1:
                self._run(tokens_1L[:, :-1], look, self._cache)
            self.h_D = self._run(self._token_11, look, self._cache_of_rows(1))[0]
        for name, values in seen.items():
            if not values:
                raise never_fires(name, subject.lm)
        whole = {name: torch.cat(values, dim=1) for name, values in seen.items()}
        self.x_1LD = torch.stack([whole[name] for name in subject.site.read_before_write]).sum(0)
        """(1, L, D): the unsteered vectors that the SAE encodes."""
        self.out_11D = whole[subject.site.write][:, -1:]
        """(1, 1, D): the unsteered vector that the edit changes, at the last position."""

    @torch.no_grad()
    def run(self, out_BD: torch.Tensor, full: int) -> torch.Tensor:
        """Final normed vectors (B, D), one for each row of vectors at the hook of the edit.

        The same bits for a row in every batch, where none has more than `full` rows.
        """
        n_rows, device = len(out_BD), out_BD.device
        out_BD = with_rows(out_BD, padded(n_rows, full, device))
        at_once = ROWS_ON_CPU if device.type == "cpu" else len(out_BD)
        return torch.cat([self._run_rows(rows_BD) for rows_BD in out_BD.split(at_once)])[:n_rows]

    def _run_rows(self, out_BD: torch.Tensor) -> torch.Tensor:
        def expand(out_11D: torch.Tensor, hook: Any) -> torch.Tensor:
            return out_BD.to(out_11D).reshape(-1, *out_11D.shape[1:])

        hooks = [(self._subject.site.write, expand)]
        return self._run(self._token_11, hooks, self._cache_of_rows(len(out_BD)))

    def bytes_per_row(self) -> int:
        """Memory that one more row takes at its peak, a generous estimate."""
        cfg = self._bridge.cfg
        size = self._subject.lm.dtype.itemsize
        n_kv = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
        blocks = self._subject.lm.n_layers - self._subject.site.first_row_block
        keys_values = 2 * n_kv * cfg.d_head * (self._length + 1) * blocks
        d_mlp = cfg.d_mlp or 4 * cfg.d_model
        return size * (keys_values + 5 * d_mlp + 16 * cfg.d_model + 8 * cfg.n_heads * cfg.d_head)

    def _run(
        self, tokens_1L: torch.Tensor, hooks: list[tuple[str, Any]], cache: Any
    ) -> torch.Tensor:
        """Final normed vectors of the last position, one for each row that comes out."""
        seen: list[torch.Tensor] = []

        def catch(h_BLD: torch.Tensor, hook: Any) -> torch.Tensor:
            seen.append(h_BLD[:, -1])
            return h_BLD[:0]  # the unembedding is not the model's to do here

        self._bridge.run_with_hooks(
            tokens_1L,
            fwd_hooks=[*hooks, ("unembed.hook_in", catch)],
            past_key_values=cache,
            use_cache=True,
        )
        return seen[0]

    def _cache_of_rows(self, n_rows: int) -> Any:
        """The prompt's cache with B rows, as views, in the blocks above the hook.

        A copy, because a forward appends the last token's keys and values to what it is given.
        """
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        if self._length > 1:
            layers: list[Any] = cache.layers[self._subject.site.first_row_block :]
            for layer in layers:
                layer.keys = layer.keys.expand(n_rows, -1, -1, -1)
                layer.values = layer.values.expand(n_rows, -1, -1, -1)
        return cache
