"""Steered texts the slow way: one text, one forward over everything for every new token."""

from __future__ import annotations

from typing import Any

import torch

from steerlens.engine.subject import Subject


@torch.no_grad()
def naive_change(
    subject: Subject,
    x_LD: torch.Tensor,
    out_LD: torch.Tensor,
    features: list[int],
    factor: float,
    operator: str = "add",
    unit: str = "a_max",
    keep_error: bool = True,
    max_activation: float = 1.0,
) -> torch.Tensor:
    """(L, D): what is written back at every position, with SAELens' own encode and decode."""
    sae = subject.sae
    plain = sae.decode(sae.encode(x_LD[None]))[0]
    reconstruction = sae(x_LD[None])[0]
    feature_acts = sae.encode(x_LD[None]).clone()
    for position in range(len(x_LD)):
        acts = feature_acts[0, position]
        largest = acts.max().clone()
        for feature in features:
            if unit == "a_max":
                goal = factor * largest
            elif unit == "max_activation":
                goal = factor * max_activation
            elif unit == "raw":
                goal = torch.tensor(float(factor))
            else:  # norm: so many activations that the change is as long as the vector
                one = torch.zeros_like(feature_acts)
                one[..., feature] = 1.0
                sae.encode(x_LD[None])
                moved = sae.decode(feature_acts + one)[0, position]
                sae.encode(x_LD[None])
                length = (moved - sae.decode(feature_acts)[0, position]).norm()
                goal = factor * out_LD[position].norm() / length
            if operator == "add":
                acts[feature] += goal
            elif operator == "clamp":
                acts[feature] = goal
            elif operator == "min_clamp":
                acts[feature] = torch.maximum(acts[feature], torch.as_tensor(goal))
            else:
                acts[feature] *= 1 - factor
    sae.encode(x_LD[None])  # what decode consumes
    change = sae.decode(feature_acts)[0] - plain
    if not keep_error:
        target = out_LD if hasattr(sae.cfg, "d_out") else x_LD
        change = change + reconstruction - target
    return out_LD + change


@torch.no_grad()
def naive_text(
    subject: Subject,
    prompt_ids: list[int],
    features: list[int],
    factor: float,
    n_tokens: int,
    positions: str = "last",
    **operation: Any,
) -> list[int]:
    """Greedy new tokens, the whole text run again for each and every position edited that ought to
    be; no cache."""
    ids = list(prompt_ids)
    for _ in range(n_tokens):
        logits = naive_logits(
            subject, ids, len(prompt_ids), features, factor, positions, **operation
        )
        ids.append(int(logits.argmax()))
    return ids[len(prompt_ids) :]


@torch.no_grad()
def naive_logits(
    subject: Subject,
    ids: list[int],
    n_prompt: int,
    features: list[int],
    factor: float,
    positions: str = "last",
    **operation: Any,
) -> torch.Tensor:
    """(V,) logits after `ids`, of which `n_prompt` are the prompt."""
    bridge, site = subject.lm.bridge, subject.site
    block = f"blocks.{subject.layer}."
    edit_at = {
        "last": range(n_prompt - 1, len(ids)),
        "all": range(len(ids)),
        "generated": range(n_prompt, len(ids)),
        "prompt": range(n_prompt),
    }[positions]
    x_of: dict[str, torch.Tensor] = {}

    def read(value: torch.Tensor, hook: Any) -> None:
        x_of["x"] = value.flatten(2)[0]

    def read_before(value: torch.Tensor, hook: Any) -> None:
        x_of["resid_pre"] = value[0]

    def write(value: torch.Tensor, hook: Any) -> torch.Tensor:
        out_LD = value.flatten(2)[0]
        x_LD = x_of.get("x", out_LD)
        if "resid_pre" in x_of:
            x_LD = x_of["resid_pre"] + out_LD
        new_LD = naive_change(subject, x_LD, out_LD, features, factor, **operation)
        result = out_LD.clone()
        if factor != 0:
            result[list(edit_at)] = new_LD[list(edit_at)]
        return result.reshape(value.shape)

    hooks: list[Any] = [(site.write, write)]
    if site.read.endswith("hook_resid_mid") and site.write.endswith("hook_attn_out"):
        hooks.insert(0, (f"{block}hook_resid_pre", read_before))
    elif site.read != site.write:
        hooks.insert(0, (site.read, read))
    return bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0, -1]
