"""Where in a block an SAE reads, and where an edit of its features has to be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerlens.config.hooks import bridge_hook, layer_of_hook
from steerlens.engine.subject.model import LoadedModel
from steerlens.errors import SteerlensError, nearest

if TYPE_CHECKING:
    from sae_lens import SAE

WRITE: dict[str, str] = {
    "hook_resid_pre": "hook_resid_pre",
    # The block adds its MLP's output to what the attention left, not to the input of the norm
    # where the bridge has this hook: only a change of the attention's output reaches both.
    "hook_resid_mid": "hook_attn_out",
    "hook_resid_post": "hook_resid_post",
    "hook_attn_out": "hook_attn_out",
    "attn.hook_z": "attn.hook_z",
    "hook_mlp_out": "hook_mlp_out",
}
"""The sites of SAEs, and the hook at which a change of the site's value reaches all that reads it;
both without `blocks.L.`."""

READ: dict[str, str] = {"hook_mlp_in": "mlp.hook_in"}
"""Hooks of other libraries that the bridge calls otherwise: Gemma Scope 2's transcoders read the
normalised input of the MLP."""


@dataclass(frozen=True)
class Site:
    """An SAE's place in the model."""

    hook_name: str
    """As the SAE's metadata calls it, in the bridge's words."""
    layer: int
    read: str
    """The bridge's hook whose value the SAE encodes."""
    write: str
    """The bridge's hook whose value an edit changes; another one for transcoders."""

    @property
    def read_before_write(self) -> tuple[str, ...]:
        """Hooks whose values, known when the edit is written, add up to what the SAE encodes.

        `hook_resid_mid` itself comes after `hook_attn_out`, where its edit is written.
        """
        if self.read.endswith("hook_resid_mid") and self.write.endswith("hook_attn_out"):
            return self.read.replace("hook_resid_mid", "hook_resid_pre"), self.write
        return (self.read,)

    @property
    def first_row_block(self) -> int:
        """The first block whose attention sees the edit."""
        return self.layer + (not self.write.endswith("hook_resid_pre"))

    @property
    def first_changed_block(self) -> int:
        """The first block in which the edit changes anything, its input included; after the last
        where the edit is at its output.
        """
        return self.layer + self.write.endswith("hook_resid_post")

    @property
    def is_z(self) -> bool:
        """Whether the SAE reads the heads' outputs, before W_O."""
        return self.write.endswith("attn.hook_z")


def never_fires(hook_name: str, lm: LoadedModel) -> SteerlensError:
    """Return the error for a hook that the bridge has and that a forward doesn't reach."""
    return SteerlensError(f"the hook {hook_name} of {lm.name} never fires.")


def is_transcoder(sae: SAE[Any]) -> bool:
    """Return whether the SAE's output stands for another hook's value than its input."""
    return hasattr(sae.cfg, "d_out")


def find_site(lm: LoadedModel, sae: SAE[Any], name: str) -> Site:
    """Return the site of SAE `name`; refuses hooks and sizes that the model doesn't have."""
    metadata = sae.cfg.metadata
    hook_name = bridge_hook(metadata.hook_name or "")
    hook_name_out = bridge_hook(metadata.hook_name_out or "") if is_transcoder(sae) else hook_name
    if not hook_name or not hook_name_out:
        missing = "hook_name_out" if hook_name else "hook_name"
        raise SteerlensError(f"the SAE {name} doesn't say its {missing} in cfg.json's metadata.")
    layer = layer_of_hook(hook_name)
    if layer is None:
        raise SteerlensError(
            f"the SAE {name} is of {hook_name}, which is no hook of a block; write one such as "
            "blocks.2.hook_resid_post into cfg.json's hook_name."
        )
    if layer >= lm.n_layers:
        raise SteerlensError(
            f"the SAE {name} is of {hook_name}, but {lm.name} has layers 0 to {lm.n_layers - 1}."
        )
    if sae.W_dec.ndim != 2:
        raise SteerlensError(f"the SAE {name} writes into several layers, which can't be steered.")
    block = f"blocks.{layer}."
    _check_width(lm, hook_name, sae.cfg.d_in, name, "d_in")
    _check_width(lm, hook_name_out, sae.W_dec.shape[-1], name, "d_out")
    inside, inside_out = hook_name.removeprefix(block), hook_name_out.removeprefix(block)
    read, write = block + READ.get(inside, inside), block + WRITE.get(inside_out, inside_out)
    for hook in (read, write):
        if hook not in lm.bridge.hook_dict:
            near = nearest(hook, lm.bridge.hook_dict)
            raise SteerlensError(
                f"{lm.name} has no hook {hook!r}, which the SAE {name} needs"
                + (f"; the nearest is {near[0]!r}." if near else ".")
            )
    if inside_out not in WRITE:
        raise SteerlensError(
            f"the SAE {name} writes at {hook_name_out}; steerlens edits at "
            f"{', '.join(f'{block}{site}' for site in WRITE)}."
        )
    return Site(hook_name=hook_name, layer=layer, read=read, write=write)


def _check_width(lm: LoadedModel, hook_name: str, width: int, name: str, setting: str) -> None:
    cfg = lm.bridge.cfg
    if hook_name.endswith("attn.hook_z"):
        expected, where = cfg.n_heads * cfg.d_head, "the heads' outputs of"
        size = "n_heads * d_head"
    else:
        expected, where, size = lm.d_model, "the residual stream of", "d_model"
    if width != expected:
        raise SteerlensError(
            f"the SAE {name} has vectors of size {width} ({setting}) at {hook_name}, but {where} "
            f"{lm.name} has {expected} ({size})."
        )
