"""One prompt's last position with features raised: the engine and the edit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from steerlens.engine.intervention import Operation, check_affine, edited, encode, feature_targets
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.rows import LastPosition
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject

ROWS_AT_ONCE = 1024


def steered_prompt(
    subject: Subject, prompt: str, keep_error: bool, ctx: RunContext, chat_template: bool = False
) -> SteeredPrompt:
    """Return the prompt, run and encoded once in a run however many features and methods use it."""
    key = (subject.hook_name, prompt, keep_error, chat_template)
    if key not in ctx.cache.prompts:
        ctx.cache.prompts[key] = SteeredPrompt(subject, prompt, keep_error, chat_template)
    return ctx.cache.prompts[key]


class SteeredPrompt:
    """A prompt that can be run with any features raised, many at once."""

    def __init__(
        self, subject: Subject, prompt: str, keep_error: bool = True, chat_template: bool = False
    ) -> None:
        self._position = LastPosition(subject, subject.to_tokens(prompt, chat_template))
        position = self._position
        self._sae = subject.sae
        self._operation = Operation(keep_error=keep_error)
        check_affine(subject.sae, position.x_1LD)
        last = slice(-1, None)
        self._encoded = encode(subject.sae, position.x_1LD, position.out_11D, keep_error, last)
        self.a_max = self._encoded.acts_BLF.max() * self._encoded.out_scale_BL[0, 0]
        """Scalar: the largest feature activation at this position, scaled as its decoded vector."""
        self.h_D = position.h_D
        """(D,): the unsteered final normed vector."""

    def run(
        self,
        features_F: torch.Tensor,
        factor: float,
        ctx: RunContext,
        bytes_per_row: int,
        use: Callable[..., None],
        directions_FD: torch.Tensor | None = None,
        hook_names: Sequence[str] = (),
    ) -> None:
        """Call `use(rows, h_BD)` with the final normed vectors of slices of `features_F`.

        Args:
            features_F: feature ids; each is raised alone, in a row of its own.
            factor: steering factor s.
            ctx: memory budget and progress.
            bytes_per_row: memory that `use` takes for each row.
            use: must not depend on how rows are grouped, as the vectors don't.
            directions_FD: what stands in the place of each feature's decoder row; None = the row.
            hook_names: hooks whose vectors `use` is given, too, as `{name: (B, D)}`.
        """

        def run_batch(rows: slice, full: int) -> None:
            features_B1 = features_F[rows, None]
            factor_B = torch.full(features_B1.shape[:1], float(factor))
            targets = feature_targets(self._sae, features_B1, factor_B)
            if directions_FD is not None:
                directions_B1D = directions_FD[rows, None].to(targets.vectors_BND)
                targets = replace(targets, vectors_BND=directions_B1D)
            out_B1D = edited(self._operation, self._encoded, self._position.out_11D, targets)
            h_BD, read = self._position.run_reading(out_B1D[:, 0], full, hook_names)
            use(rows, h_BD, read) if hook_names else use(rows, h_BD)

        per_row = self._position.bytes_per_row() + bytes_per_row
        size = rows_that_fit(ctx.memory_budget, per_row, ROWS_AT_ONCE)
        for n_done in batches(len(features_F), size, run_batch):
            ctx.progress(n_done)
