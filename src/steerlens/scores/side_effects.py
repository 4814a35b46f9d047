"""Side effects: whether a feature does the same everywhere, and what else it changes.

After arXiv 2606.08365, before any text is made. A feature is amplified after several neutral
prompts. Effect stability is the mean cosine between the changes of the next-token logits under two
of them: 1 where the feature always does the same. Collateral spread is how many other features
change at the steered position, in the same SAE and in the SAEs of later layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.config.prompts import PROMPTS
from steerlens.engine.run_context import no_progress
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext, ScoreConfig

if TYPE_CHECKING:
    import torch

    from steerlens.engine.subject import Subject


@dataclass
class SideEffectsConfig(ScoreConfig):
    """Settings of the side effects."""

    method: str = "side_effects"
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS[:8]))
    """Neutral prompts, at least two."""
    factor: float = 10.0
    """Steering factor s, as of the output score."""
    tolerance: float = 0.1
    """A feature has changed if its activation differs by more than this share of the largest
    unsteered activation of its SAE at the position."""
    later_saes: int | None = None
    """How many SAEs of later layers are looked at, of those that the run has, the nearest first; 0
    = none, null = all. They are in memory together."""
    keep_error: bool = True
    """Keep the SAE's reconstruction error."""

    FILLS: ClassVar[Sequence[str]] = (
        "effect_stability",
        "collateral_spread",
        "collateral_spread_later",
    )

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if len(self.prompts) < 2 or not all(prompt.strip() for prompt in self.prompts):
            raise SteerlensError("prompts of score side_effects: give two or more, none empty.")
        if self.factor == 0:
            raise self.refusal("factor", "steers with nothing, so that nothing can change")
        if not 0 <= self.tolerance < np.inf:
            raise self.refusal("tolerance", "must be at least 0")
        if self.later_saes is not None and self.later_saes < 0:
            raise self.refusal("later_saes", "must be at least 0, or null for all")

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ()

    def n_later(self) -> int | None:
        """Return how many SAEs of later layers the method looks at; None = all of the run's."""
        return self.later_saes


Config = SideEffectsConfig


def score(
    subject: Subject, features: np.ndarray, config: SideEffectsConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Score `features`, shape (n,).

    Returns:
        `effect_stability`, from -1 to 1 (NaN for a feature that changes no logit after one of the
        prompts); `collateral_spread`, the number of other features of the SAE that change, the mean
        over prompts; and `collateral_spread_later`, the mean over prompts and later SAEs (NaN where
        there are none).

    Raises:
        SteerlensError: for NaN logits.
    """
    import torch

    from steerlens.engine.ranks import products_of_changes
    from steerlens.engine.steered import steered_prompt

    ids_F = torch.tensor(np.asarray(features, dtype=np.int64))
    watched = [subject, *ctx.later_subjects(subject, config.later_saes)]
    hook_names = list(dict.fromkeys(each.site.read for each in watched))
    silent = dataclasses.replace(ctx, progress=no_progress)
    changed_SF = np.zeros((len(watched), len(ids_F)))
    h_PFD: list[torch.Tensor] = []
    before_PD: list[torch.Tensor] = []
    for text in config.prompts:
        prompt = steered_prompt(subject, text, config.keep_error, ctx)
        before: dict[str, torch.Tensor] = {}

        def look(
            _rows: slice,
            h_1D: torch.Tensor,
            read: Mapping[str, torch.Tensor],
            before: dict[str, torch.Tensor] = before,
        ) -> None:
            before_PD.append(h_1D[0])
            before.update(read)

        # As the features are run, so that what changes nothing has the same bits.
        prompt.run(ids_F[:1], 0.0, silent, 0, look, hook_names=hook_names)
        h_FD = torch.empty(len(ids_F), *prompt.h_D.shape, dtype=prompt.h_D.dtype)

        def watch(
            rows: slice,
            h_BD: torch.Tensor,
            read: Mapping[str, torch.Tensor],
            before: Mapping[str, torch.Tensor] = before,
            h_FD: torch.Tensor = h_FD,
        ) -> None:
            h_FD[rows] = h_BD.cpu()
            for index, each in enumerate(watched):
                own_ids = ids_F[rows] if each is subject else None
                name = each.site.read
                changed_SF[index, rows] += n_changed(
                    each, read[name], before[name], config.tolerance, own_ids
                )

        widest = max(each.d_sae for each in watched)
        prompt.run(ids_F, config.factor, silent, 12 * widest, watch, hook_names=hook_names)
        h_PFD.append(h_FD)
    head = subject.lm.head
    product_FPP = products_of_changes(
        head, torch.stack(h_PFD, dim=1).to(head.device), torch.stack(before_PD)
    )
    stability_F = mean_cosine(product_FPP).cpu().numpy()
    ctx.progress(len(features))
    same_F, *later_F = changed_SF / len(config.prompts)
    nan_F = np.full(len(features), np.nan)
    return {
        "effect_stability": stability_F,
        "collateral_spread": same_F,
        "collateral_spread_later": np.mean(later_F, axis=0) if later_F else nan_F,
    }


def n_changed(
    subject: Subject,
    x_BD: torch.Tensor,
    before_1D: torch.Tensor,
    tolerance: float,
    own_B: torch.Tensor | None = None,
) -> np.ndarray:
    """Return how many of an SAE's features change in each row: (B,) int64.

    Args:
        subject: the SAE.
        x_BD: what it reads in each row.
        before_1D: what it reads without steering.
        tolerance: share of the largest activation without steering.
        own_B: (B,) the feature that each row was steered with, which isn't counted; None = it is of
            another SAE.
    """
    import torch

    from steerlens.engine.padding import padded, with_rows

    sae = subject.sae
    with torch.no_grad():
        # In one product, so that equal vectors have equal activations.
        rows_BD = torch.cat([x_BD, before_1D]).to(sae.W_dec)
        rows_BD = with_rows(rows_BD, padded(len(rows_BD), len(rows_BD), rows_BD.device))
        acts_BF = sae.encode(rows_BD[:, None])[:, 0].float()
        before_F = acts_BF[len(x_BD)]
        change_BF = (acts_BF[: len(x_BD)] - before_F).abs()
        if not torch.isfinite(change_BF).all():
            raise SteerlensError(
                f"layer {subject.layer} gives NaN activations in {subject.lm.dtype}; use "
                "dtype=float32."
            )
        changed_BF = change_BF > tolerance * before_F.max()
        if own_B is not None:
            changed_BF[torch.arange(len(x_BD)), own_B.to(changed_BF.device)] = False
        return changed_BF.sum(dim=-1).cpu().numpy()


def mean_cosine(product_FPP: torch.Tensor) -> torch.Tensor:
    """Return the mean cosine between two of P vectors, from their inner products (F, P, P): (F,),
    NaN where one of them is 0.
    """
    import torch

    norm_FP = product_FPP.diagonal(dim1=1, dim2=2).sqrt()
    cosine_FPP = product_FPP / (norm_FP[:, :, None] * norm_FP[:, None])
    above = torch.triu_indices(*product_FPP.shape[1:], offset=1)
    return cosine_FPP[:, above[0], above[1]].mean(dim=-1)
