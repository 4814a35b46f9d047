"""First-step divergence: how far steering moves the first next-token distribution that it changes.

Not a metric of a finished text: generation calls it, which has the logits.
"""

from __future__ import annotations

import torch

from steerlens.engine.padding import rows_at_once

CHUNK_BYTES = 8 * 1024**2
"""On a CPU, what stays in the cache is several times faster."""


@torch.no_grad()
def first_step_kl(
    steered_BV: torch.Tensor, unsteered_PV: torch.Tensor, row_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Return KL(steered || unsteered) of next-token distributions, in nats: (B,) float32.

    Exactly 0 where both are equal, never negative. Computed in float32, a few rows at a time.

    Args:
        steered_BV: logits.
        unsteered_PV: logits.
        row_B: (B,) which of the P rows each of the B is compared with; None = in the same order.
    """
    if row_B is None:
        row_B = torch.arange(len(steered_BV))
    row_B = row_B.to(unsteered_PV.device)
    rows = rows_at_once(CHUNK_BYTES, 4 * steered_BV.shape[1])
    if steered_BV.device.type != "cpu":
        rows = max(1, len(steered_BV))
    parts = [
        _kl(steered, unsteered_PV[rows_of_part])
        for steered, rows_of_part in zip(steered_BV.split(rows), row_B.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _kl(steered_BV: torch.Tensor, unsteered_BV: torch.Tensor) -> torch.Tensor:
    p_BV = steered_BV.float().log_softmax(dim=-1)
    q_BV = unsteered_BV.float().log_softmax(dim=-1)
    kl_BV = torch.nn.functional.kl_div(q_BV, p_BV, reduction="none", log_target=True)
    # Equal rows may be summed in another order, each by where it lies in memory.
    equal_B = (steered_BV == unsteered_BV).all(dim=-1)
    return kl_BV.sum(dim=-1).clamp_min(0).masked_fill_(equal_B, 0)
