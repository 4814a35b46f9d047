"""What Hydra knows before it composes: the schemas, and the functions that `conf/` calls."""

from __future__ import annotations

import math
import re
import sys
from functools import cache

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from steerlens.config.registry import load_part, parts_of
from steerlens.config.schema import ReferenceConfig, RunConfig
from steerlens.config.shipped import shipped_path
from steerlens.errors import SteerlensError


def register() -> dict[str, str]:
    """Tell Hydra the schemas and resolvers; can be called again.

    Returns why a scoring method can't be used, by the method's name: that matters only to
    those who ask for it.
    """
    OmegaConf.register_new_resolver(
        "steerlens.shipped", lambda name: str(shipped_path(name)), replace=True
    )
    OmegaConf.register_new_resolver(
        "steerlens.reference_features", _reference_features, replace=True
    )
    OmegaConf.register_new_resolver("steerlens.width", features_of_width, replace=True)
    OmegaConf.register_new_resolver("steerlens.gemma_scope_2_id", _gemma_scope_2_id, replace=True)
    return _register(tuple(sys.path))


@cache
def _register(path: tuple[str, ...]) -> dict[str, str]:
    """Register once on a path of imports: making a schema of a dataclass takes its time."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=RunConfig)
    broken = {}
    for name in parts_of("scores"):
        try:
            store.store(group="score", name=f"{name}_schema", node=load_part("scores", name).Config)
        except SteerlensError as error:
            broken[name] = str(error)
        except Exception as error:  # somebody else's module: anything can happen
            broken[name] = f"scoring method {name!r} has no settings: {error}"
    return broken


def _reference_features(reference: DictConfig) -> str:
    """Return the file of the features that the authors have listed."""
    from steerlens.config.reference import cache_file, check_reference

    config = ReferenceConfig(**{str(key): value for key, value in reference.items()})
    check_reference(config)
    file = cache_file(config, "features")
    if file is None:
        raise SteerlensError("features=reference needs reference.path=DIR reference.model=NAME.")
    return str(file)


def features_of_width(width: str) -> int:
    """Return the number of features that names of SAEs round: `16k` is 16384, `1m` is 1048576.

    Raises:
        SteerlensError: `width` is no number with k or m behind it.
    """
    match = re.fullmatch(r"(\d+)([km])", width)
    if match is None:
        raise SteerlensError(f"sae.width={width} is no width; widths look like 16k or 1m.")
    return 2 ** round(math.log2(int(match[1]) * {"k": 1e3, "m": 1e6}[match[2]]))


def _gemma_scope_2_id(site: str, width: str, l0: str) -> str:
    """Return SAELens' ids of Gemma Scope 2: those of the site transcoders name their folder."""
    folder = "transcoder/" if site == "transcoders" else ""
    return f"{folder}layer_{{layer}}_width_{width}_l0_{l0}"
