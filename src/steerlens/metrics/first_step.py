"""First-step KL: how far steering moves the next-token distribution when it first acts."""

from __future__ import annotations

import torch

BYTES_AT_ONCE = 8 * 1024**2


def first_step_kl(
    steered_BV: torch.Tensor, unsteered_PV: torch.Tensor, prompt_B: torch.Tensor | None = None
) -> torch.Tensor:
    """(B,) KL(steered || unsteered) in nats, from logits; exactly 0 where they are equal.

    Args:
        steered_BV: logits of each row.
        unsteered_PV: logits without steering.
        prompt_B: which of the P rows belongs to each of the B; None if they are in the same order.
    """
    if prompt_B is None:
        prompt_B = torch.arange(len(steered_BV))
    at_once = max(1, BYTES_AT_ONCE // (4 * steered_BV.shape[1]))
    if steered_BV.device.type != "cpu":
        at_once = len(steered_BV)
    parts = []
    for steered, prompt in zip(steered_BV.split(at_once), prompt_B.split(at_once), strict=True):
        log_p = steered.float().log_softmax(-1)
        log_q = unsteered_PV[prompt.to(unsteered_PV.device)].float().log_softmax(-1)
        difference = log_p - log_q
        parts.append((log_p.exp() * difference).sum(-1).clamp(min=0))
        parts[-1].masked_fill_((difference == 0).all(-1), 0)
    return torch.cat(parts)
