"""Checks that an SAE belongs to the model it is about to be used on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from steerlens.config.belonging import refuse_other_gguf, refuse_other_model
from steerlens.config.settings import SubjectSettings
from steerlens.engine.subject.model import LoadedModel
from steerlens.engine.subject.sae import SaeSource
from steerlens.engine.subject.site import Site, find_site
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from sae_lens import SAE


def check_belongs(
    lm: LoadedModel, sae: SAE[Any], source: SaeSource, settings: SubjectSettings
) -> Site:
    """Find the SAE's site in the model.

    Raises:
        SteerlensError: the SAE can't be of this model, or isn't of a layer that is asked for.
    """
    model, layers = settings.model, settings.layers
    if sae.cfg.metadata.model_name:
        refuse_other_model(f"the SAE {source}", str(sae.cfg.metadata.model_name), model)
    if sha256 := sae.cfg.metadata.gguf_sha256:
        refuse_other_gguf(f"the SAE {source}", sha256, model, str(settings.cache_dir))
    site = find_site(lm, sae, str(source))
    if source.layer is None and not isinstance(layers, str) and site.layer not in layers:
        asked_for = ", ".join(map(str, layers))
        raise SteerlensError(
            f"the SAE {source} is of layer {site.layer}, not of layer {asked_for}."
        )
    return site


def note_of_copy(lm: LoadedModel, sae: SAE[Any]) -> str | None:
    """Say that an SAE was trained on a quantised copy, a GGUF, of the weights that it is used on.

    None where nothing says so, and for the GGUF itself.
    """
    metadata = sae.cfg.metadata
    if not metadata.gguf_sha256 or "sha256" in lm.identity:
        return None
    file = str(metadata.gguf_file or "a GGUF")
    bits = re.search(r"Q(\d)_", file)
    return (
        f"The SAEs were trained on the {f'{bits[1]}-bit' if bits else 'quantised'} copy of "
        f"{lm.name}, {file}, and not on these weights."
    )
