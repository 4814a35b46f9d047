"""Which SAEs there are for the layers of a run, as far as that shows without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steerlens.config.catalog import read_release, releases
from steerlens.config.folders import count_layers, sae_facts, sae_folders
from steerlens.config.parse import layers_told, parse_layers
from steerlens.config.schema import SaeConfig
from steerlens.config.settings import SubjectSettings
from steerlens.errors import SteerlensError, unknown


@dataclass(frozen=True)
class SaeSource:
    """Where one SAE comes from. `layer` is None while only its weights could tell."""

    layer: int | None
    path: Path | None = None
    release: str | None = None
    sae_id: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.path else f"{self.release}/{self.sae_id}"


def sae_sources(subject: SubjectSettings, n_layers: int) -> list[SaeSource]:
    """List the SAEs of the layers that are asked for, in rising order of layers.

    Args:
        subject: model, SAEs and layers. `all` and `late` mean those that have an SAE; a layer
            that is named must have one.
        n_layers: how many the model has.

    Raises:
        SteerlensError: there is no such release, or a layer has no SAE.
    """
    sae = subject.sae
    layers = parse_layers(subject.layers, n_layers, subject.model.late_from)
    sources = _of_folder(Path(sae.path)) if sae.path else _of_release(sae, range(n_layers))
    if len(sources) == 1 and sources[0].layer is None:
        return sources
    by_layer = {source.layer: source for source in sources}
    missing = [layer for layer in layers if layer not in by_layer]
    if len(missing) == len(layers) or (missing and not isinstance(subject.layers, str)):
        available = [layer for layer in by_layer if layer is not None]
        numbers = layers_told(available, missing[0]) or "none of this model"
        raise SteerlensError(f"sae={sae.name} has no SAE at layer {missing[0]}; it has: {numbers}.")
    return [by_layer[layer] for layer in layers if layer in by_layer]


def layers_with_sae(subject: SubjectSettings) -> list[int] | None:
    """Return the layers of a run; None while only a download, or the SAE's weights, could tell.

    Raises:
        SteerlensError: as `sae_sources` does.
    """
    n_layers = count_layers(subject.model)
    if n_layers is None:
        return None
    layers = [source.layer for source in sae_sources(subject, n_layers)]
    known_layers = [layer for layer in layers if layer is not None]
    return known_layers if len(known_layers) == len(layers) else None


def listed_ids(sae: SaeConfig) -> set[str] | None:
    """Return the ids in the SAE's release; None for a repository outside SAELens' list.

    Raises:
        SteerlensError: SAELens has no such release, or that has no such id.
    """
    release, sae_id = sae.release, sae.sae_id
    if not release or not sae_id:
        raise SteerlensError("choose an SAE: sae.path=DIR, or sae.release=... and sae.sae_id=... .")
    if release not in releases() and "/" in release:
        return None
    ids = {listed["id"] for listed in read_release(release)["saes"]}
    if "{layer}" not in sae_id and sae_id not in ids:
        raise unknown(f"id in SAELens release {release}", sae_id, ids)
    return ids


def _of_folder(folder: Path) -> list[SaeSource]:
    sources: dict[int | None, SaeSource] = {}
    for path in sae_folders(folder):
        layer = sae_facts(path).layer
        if layer in sources:
            raise SteerlensError(
                f"{sources[layer].path} and {path} are both SAEs of layer {layer}; "
                "point sae.path at one of them."
            )
        sources[layer] = SaeSource(layer=layer, path=path)
    return list(sources.values())


def _of_release(sae: SaeConfig, every_layer: range) -> list[SaeSource]:
    ids, sae_id = listed_ids(sae), str(sae.sae_id)
    if "{layer}" not in sae_id:
        return [SaeSource(layer=None, release=sae.release, sae_id=sae_id)]
    id_at = {layer: sae_id.replace("{layer}", str(layer)) for layer in every_layer}
    if ids is not None:
        listed = {layer: sae_id for layer, sae_id in id_at.items() if sae_id in ids}
        if not listed:
            raise unknown(f"id in SAELens release {sae.release}", id_at[every_layer[0]], ids)
        id_at = listed
    return [
        SaeSource(layer=layer, release=sae.release, sae_id=sae_id)
        for layer, sae_id in id_at.items()
        if sae.layers is None or layer in sae.layers
    ]
