"""Checks that an SAE belongs to the model it is about to be used on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerlens.config.check import refuse_other_model
from steerlens.config.schema import RunConfig
from steerlens.errors import SteerlensError, nearest
from steerlens.subject.model import LoadedModel
from steerlens.subject.sae import SaeSource, layer_of_hook

if TYPE_CHECKING:
    from sae_lens import SAE

SITES = ("resid_pre", "resid_post")


def check_belongs(
    lm: LoadedModel, sae: SAE[Any], source: SaeSource, config: RunConfig
) -> tuple[int, str]:
    """The SAE's layer and hook name; refuses an SAE that can't be of this model."""
    if sae.cfg.metadata.model_name:
        refuse_other_model(f"the SAE {source}", str(sae.cfg.metadata.model_name), config.model)
    if sae.cfg.d_in != lm.d_model:
        raise SteerlensError(
            f"the SAE {source} reads vectors of size {sae.cfg.d_in} (d_in), but the residual "
            f"stream of {lm.name} has {lm.d_model} (d_model)."
        )
    hook_name = sae.cfg.metadata.hook_name
    if not hook_name:
        raise SteerlensError(f"the SAE {source} doesn't say its hook_name in cfg.json's metadata.")
    layer = layer_of_hook(hook_name)
    if layer is not None and layer >= lm.n_layers:
        raise SteerlensError(
            f"the SAE {source} is of {hook_name}, but {lm.name} has layers 0 to {lm.n_layers - 1}."
        )
    if hook_name not in lm.bridge.hook_dict:
        near = nearest(hook_name, lm.bridge.hook_dict)
        raise SteerlensError(
            f"{lm.name} has no hook {hook_name!r}, which the SAE {source} was trained at"
            + (f"; the nearest is {near[0]!r}." if near else ".")
        )
    if layer is None or hook_name.rsplit("hook_", 1)[-1] not in SITES:
        raise SteerlensError(
            f"the SAE {source} is of {hook_name}; steerlens scores SAEs of the residual stream "
            f"({' and '.join(f'blocks.L.hook_{site}' for site in SITES)})."
        )
    if source.layer is None and isinstance(config.layer, int) and config.layer != layer:
        raise SteerlensError(f"the SAE {source} is of layer {layer}, not of layer {config.layer}.")
    return layer, hook_name
