"""A stand-in for the distribution with the default's SAEs, whose weights nobody loads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.config.folders import sae_folder

MODEL = (
    *("model=hub", "model.path=HuggingFaceTB/SmolLM2-135M-Instruct", "model.n_layers=30"),
    *("model.d_model=576", "model.aliases=[smollm2-135m-instruct]"),
)
"""The default model as any other on the hub: nothing of it need be on this machine."""
LAYERS = (4, 9, 14, 19, 24, 28)


def save_distribution(
    folder: Path, releases: Iterable[str] = ("smollm2-topk",), layers: Iterable[int] = LAYERS
) -> Path:
    """Write `steerlens_smollm2` with `releases` of SAEs into `folder`, to be put on `sys.path`."""
    module = folder / "steerlens_smollm2"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text('"""Data."""\n')
    for release in releases:
        for layer in layers:
            sae_folder(module / release / f"layer_{layer}", layer=layer, d_in=576)
    return module
