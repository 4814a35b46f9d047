"""What each row is steered with: its feature, several together, or what stands in for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from steerlens.config.schema import CONTROLS, RANDOM_DIRECTION, RANDOM_FEATURE, SteerConfig
from steerlens.engine.generation.sampling import row_seed
from steerlens.engine.intervention import Targets, decoder_rows, feature_targets
from steerlens.errors import SteerlensError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject


def row_targets(
    subject: Subject, batch: pd.DataFrame, max_activation_F: torch.Tensor | None, seed: int
) -> Targets:
    """Return the targets of rows with columns `feature`, `control`, `together` and `factor`.

    Of n features together each has a share of 1/n in the row's factor.
    """
    groups = [
        [int(feature), *map(int, filter(None, together.split("+")))]
        for feature, together in zip(batch["feature"], batch["together"], strict=True)
    ]
    widest = max(map(len, groups))
    features_BN = torch.tensor([group + group[:1] * (widest - len(group)) for group in groups])
    size_B1 = torch.tensor([[float(len(group))] for group in groups])
    targets = feature_targets(
        subject.sae,
        features_BN,
        factor_B=torch.tensor(batch["factor"].tolist(), dtype=torch.float64),
        weights_BN=(torch.arange(widest) < size_B1) / size_B1,  # 0 where the group has ended
        max_activation_BN=None if max_activation_F is None else max_activation_F[features_BN],
    )
    for row, control in enumerate(batch["control"]):
        vector_D, seeds = targets.vectors_BND[row, 0], (seed, subject.layer, groups[row][0])
        if control == RANDOM_DIRECTION:
            targets.vectors_BND[row, 0] = _random_like(vector_D, *seeds)
        elif control == RANDOM_FEATURE:
            other_D = decoder_rows(subject.sae, torch.tensor(_another(subject.d_sae, *seeds)))
            other_D = torch.nn.functional.normalize(other_D, dim=0)  # a row of zeros stays one
            targets.vectors_BND[row, 0] = other_D * vector_D.norm()
        elif control:
            raise unknown("steer.controls", control, CONTROLS)
    return targets


def _random_like(vector_D: torch.Tensor, *seeds: int) -> torch.Tensor:
    """Return a random direction of the same norm."""
    rng = np.random.Generator(np.random.Philox(row_seed(RANDOM_DIRECTION, *seeds)))
    random_D = torch.from_numpy(rng.standard_normal(len(vector_D))).to(vector_D)
    return random_D * (vector_D.norm() / random_D.norm())


def _another(d_sae: int, seed: int, layer: int, feature: int) -> int:
    """Return any other feature of the SAE; one that never fires is a direction of the SAE, too."""
    if d_sae < 2:
        raise SteerlensError(
            f"steer.controls=[{RANDOM_FEATURE}] needs an SAE with at least two features."
        )
    rng = np.random.Generator(np.random.Philox(row_seed(RANDOM_FEATURE, seed, layer, feature)))
    drawn = int(rng.integers(d_sae - 1))
    return drawn + (drawn >= feature)


def max_activations(subject: Subject, steer: SteerConfig, ctx: RunContext) -> torch.Tensor:
    """Return, as (F,), each feature's own maximum over the corpus, or over what ships instead; a
    default where it never fires.
    """
    from steerlens.engine.corpus_pass import PiecesFired, activations_of, read_corpus
    from steerlens.engine.examples import read_examples

    if ctx.examples:
        examples = read_examples(Path(ctx.examples), subject, ["max_activation"])
        max_F = examples.numbers("max_activation", np.arange(subject.d_sae))
    else:
        read_corpus([subject], [PiecesFired(at_most=0)], ctx)
        max_F = activations_of(subject, None, ctx).max_F.astype(float)
    fires_F = max_F > 0
    default = steer.default_max_activation
    if default is None:
        default = float(np.median(max_F[fires_F])) if fires_F.any() else 1.0
    return torch.from_numpy(np.where(fires_F, max_F, default))
