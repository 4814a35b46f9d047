"""Other scores the slow way: one feature, or one text, a forward of the whole model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from steerlens.engine.subject import Subject


def naive_attribution(
    subject: Subject, tokens_L: np.ndarray, every: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and their gradients, (L, F): the SAE's reconstruction and error spliced in."""
    bridge, sae = subject.lm.bridge, subject.sae
    tokens_1L = torch.tensor(np.asarray(tokens_L))[None]
    write = subject.sae.cfg.metadata.hook_name_out or subject.hook_name
    cache = bridge.run_with_cache(tokens_1L)[1]
    x, out = cache[subject.hook_name].flatten(2), cache[write]
    acts = sae.encode(x).detach().requires_grad_()
    # Some SAEs keep state from encode for the decode that follows.
    decoded = sae.decode(acts).reshape(out.shape)
    spliced = decoded + (out - decoded).detach()
    logits = bridge.run_with_hooks(tokens_1L, fwd_hooks=[(write, lambda *_, **__: spliced)])[0]
    positions = logits.double() if every else logits.double()[-1:]
    log_p = positions.log_softmax(-1).max(-1).values.sum()
    (grad,) = torch.autograd.grad(log_p, [acts])
    return acts[0].detach(), grad[0]


@torch.no_grad()
def naive_side_effects(
    subject: Subject,
    feature: int,
    prompts: Sequence[str],
    factor: float,
    tolerance: float,
    later: Iterable[Subject] = (),
) -> tuple[float, float, list[float]]:
    """Stability, spread in the same SAE, and in each later one, of one feature."""
    bridge, sae = subject.lm.bridge, subject.sae
    changes: list[torch.Tensor] = []
    spreads: list[list[int]] = []
    for prompt in prompts:
        tokens = subject.to_tokens(prompt)
        plain = bridge.run_with_cache(tokens)[1]
        x = plain[subject.hook_name]
        acts = sae.encode(x)
        raised = acts.clone()
        raised[..., feature] += factor * acts[0, -1].max()
        change = sae.decode(raised) - sae.decode(acts)
        seen: dict[str, torch.Tensor] = {}

        def edit(out: torch.Tensor, hook: Any, change: torch.Tensor = change) -> torch.Tensor:
            out = out.clone()
            out[:, -1] += change[:, -1]
            return out

        def look(
            out: torch.Tensor, hook: Any, name: str, seen: dict[str, torch.Tensor] = seen
        ) -> None:
            seen[name] = out

        names = [subject.hook_name, *(each.hook_name for each in later)]
        looks = [(name, partial(look, name=name)) for name in names]
        hooks = [(subject.hook_name, edit), *looks]
        steered = bridge.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
        changes.append((steered - bridge(tokens)[0, -1]).double())
        spread = []
        for each in (subject, *later):
            before = each.sae.encode(plain[each.hook_name])[0, -1]
            after = each.sae.encode(seen[each.hook_name])[0, -1]
            differs = (after - before).abs() > tolerance * before.max()
            if each is subject:
                differs[feature] = False
            spread.append(int(differs.sum()))
        spreads.append(spread)
    cosines = [
        float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        for a, b in itertools.combinations(changes, 2)
    ]
    same, *others = np.mean(spreads, axis=0)
    return float(np.mean(cosines)), same, others


@torch.no_grad()
def naive_largest(subject: Subject, prompt: str, token_ids: list[int]) -> np.ndarray:
    """Largest activation over the generated tokens, (F,)."""
    prompt_1L = subject.to_tokens(prompt)
    tokens = torch.cat([prompt_1L, torch.tensor([token_ids])], dim=1)
    _, cache = subject.lm.bridge.run_with_cache(tokens)
    acts_LF = subject.sae.encode(cache[subject.hook_name])[0, prompt_1L.shape[1] :]
    return acts_LF.amax(dim=0).numpy()
