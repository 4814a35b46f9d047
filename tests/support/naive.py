"""The output score the slow way: one feature a forward, with SAELens' own encode and decode."""

from __future__ import annotations

from typing import Any

import torch

from steerlens.engine.subject import Subject


@torch.no_grad()
def naive_logit_lens(subject: Subject, feature: int, top_k: int) -> torch.Tensor:
    """The feature's own tokens: top-k of unembed(LN(d_i)), after W_O for heads' outputs."""
    bridge, row_D = subject.lm.bridge, subject.sae.W_dec[feature]
    if subject.hook_name.endswith("hook_z"):
        row_D = row_D @ bridge.blocks[subject.layer].attn.W_O.flatten(0, -2)
    return bridge.unembed(bridge.ln_final(row_D[None, None]))[0, 0].topk(top_k).indices


@torch.no_grad()
def unsteered(subject: Subject, prompt: str) -> Any:
    """All activations of the prompt."""
    return subject.lm.bridge.run_with_cache(subject.to_tokens(prompt))[1]


@torch.no_grad()
def naive_steered_logits(
    subject: Subject,
    feature: int,
    prompt: str,
    factor: float,
    top_k: int = 20,
    keep_error: bool = True,
    cache: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after the edit, (V,) float64, and the feature's own logit-lens tokens.

    `cache` is `unsteered(subject, prompt)`, where several features need it.
    """
    bridge, sae = subject.lm.bridge, subject.sae
    tokens = subject.to_tokens(prompt)
    cache = unsteered(subject, prompt) if cache is None else cache
    block = f"blocks.{subject.layer}."
    own = naive_logit_lens(subject, feature, top_k)
    read, write = subject.hook_name, sae.cfg.metadata.hook_name_out or subject.hook_name
    if read.endswith("hook_mlp_in"):
        read = f"{block}mlp.hook_in"
    x = cache[read]
    if write.endswith("resid_mid"):
        x = cache[f"{block}hook_resid_pre"] + cache[f"{block}hook_attn_out"]
        write = f"{block}hook_attn_out"
    if read.endswith("hook_z"):
        x = x.flatten(2)
    # Each decode right after its own encode: some SAEs keep state from one for the other.
    plain = sae.decode(sae.encode(x))
    reconstruction = sae(x)
    feature_acts = sae.encode(x).clone()
    feature_acts[..., feature] += factor * feature_acts[0, -1].max()
    change = sae.decode(feature_acts) - plain
    if not keep_error:
        target = cache[write] if hasattr(sae.cfg, "d_out") else x
        change = change + reconstruction - target.flatten(2)

    def edit(out: torch.Tensor, hook: Any) -> torch.Tensor:
        out = out.clone()
        out[:, -1] += change[:, -1].reshape(out[:, -1].shape)
        return out

    logits = bridge.run_with_hooks(tokens, fwd_hooks=[(write, edit)])[0, -1].double()
    return logits, own


@torch.no_grad()
def naive_output_score(
    subject: Subject,
    feature: int,
    prompt: str,
    factor: float,
    top_k: int = 20,
    keep_error: bool = True,
    cache: Any = None,
) -> tuple[float, int, float]:
    """(score, rank, probability) of one feature, by the definitions (paper Eq. 6, 9, 10)."""
    logits, own = naive_steered_logits(subject, feature, prompt, factor, top_k, keep_error, cache)
    best = own[logits[own].argmax()]
    rank = int((logits > logits[best]).sum())
    probability = float(logits.softmax(-1)[best])
    return (1 - rank / len(logits)) * probability, rank, probability
