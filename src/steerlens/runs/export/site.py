"""Where a vector goes in the plain Hugging Face model, outside TransformerLens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError

SIDES = {"hook_out": "output", "hook_in": "input"}


@dataclass(frozen=True)
class Place:
    """A module, and on which side of it the vector is added."""

    module: str
    """Its name in the Hugging Face model."""
    side: str
    """`output` or `input`."""
    base_model_prefix: str
    linear: torch.nn.Module | None = None
    """What the vector passes before it is added there."""

    def carry(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """Return rows at the SAE's site as rows at this place."""
        if self.linear is None:
            return rows_BD
        return self.linear(rows_BD) - self.linear(torch.zeros_like(rows_BD[:1]))  # no bias


def find_place(subject: Subject) -> Place:
    """Return the place at which adding a vector does what adding it at the SAE's site does.

    An output where there is one, because some tools change nothing else: the input of a block is
    the output of the one before it, and what is added before W_O comes out of it as `W_O @ vector`.

    Raises:
        SteerlensError: if the site is inside a module.
    """
    site, bridge = subject.site, subject.lm.bridge
    hook_name, linear = site.write, None
    if hook_name.endswith("hook_resid_pre") and site.layer > 0:
        hook_name = f"blocks.{site.layer - 1}.hook_resid_post"
    if site.is_z:
        hook_name = f"blocks.{site.layer}.attn.o.hook_out"
        linear = bridge.blocks[site.layer].attn.o.original_component
    # Not the alias that it was asked for: blocks.2.mlp.hook_out.
    _, layer, *parts, hook = str(bridge.hook_dict[hook_name].name).split(".")
    block: Any = bridge.blocks[int(layer)]
    components: list[Any] = list(accumulate(parts, getattr, initial=block))
    if hook in SIDES:
        # The bridge's components know what the Hugging Face model calls them, each in its parent.
        module = ".".join(component.name for component in components if component.name)
        hf_model: Any = bridge.original_model
        return Place(module, SIDES[hook], hf_model.base_model_prefix, linear)
    raise SteerlensError(
        f"{site.write} of {subject.lm.name} is neither the output nor the input of a module of the "
        "Hugging Face model, so other tools can't add a vector there."
    )
