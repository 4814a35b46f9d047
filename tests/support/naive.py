"""The output score the slow way: one feature a forward, with SAELens' own encode and decode."""

from __future__ import annotations

from typing import Any

import torch

from steerlens.subject import Subject


@torch.no_grad()
def naive_output_score(
    subject: Subject,
    feature: int,
    prompt: str,
    factor: float,
    top_k: int = 20,
    keep_error: bool = True,
) -> tuple[float, int, float]:
    """(score, rank, probability) of one feature, by the definitions (paper Eq. 6, 9, 10)."""
    bridge, sae = subject.lm.bridge, subject.sae
    own = bridge.unembed(bridge.ln_final(sae.W_dec[feature][None, None]))[0, 0].topk(top_k).indices

    def edit(x: torch.Tensor, hook: Any) -> torch.Tensor:
        last = x[:, -1:]
        feature_acts = sae.encode(last)
        reconstruction = sae.decode(feature_acts)
        feature_acts = sae.encode(last).clone()
        feature_acts[..., feature] += factor * feature_acts.max()
        changed = sae.decode(feature_acts)
        x = x.clone()
        x[:, -1:] = changed + (last - reconstruction) if keep_error else changed
        return x

    tokens = subject.to_tokens(prompt)
    logits = bridge.run_with_hooks(tokens, fwd_hooks=[(subject.hook_name, edit)])[0, -1].double()
    best = own[logits[own].argmax()]
    rank = int((logits > logits[best]).sum())
    probability = float(logits.softmax(-1)[best])
    return (1 - rank / len(logits)) * probability, rank, probability
