"""Finding and loading SAEs: a SAELens release, or a local folder in a layout that is known."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steerlens.config import saes
from steerlens.config.folders import check_k, tensor_shapes
from steerlens.config.sae_formats import sae_config, weights_file
from steerlens.config.saes import SaeSource
from steerlens.config.settings import SubjectSettings
from steerlens.engine.subject.device import resolve_dtype
from steerlens.engine.subject.model import count_layers
from steerlens.engine.subject.sae_weights import read_weights
from steerlens.errors import SteerlensError
from steerlens.storage.provenance import folder_identity, hub_revision

if TYPE_CHECKING:
    from sae_lens import SAE


def sae_sources(settings: SubjectSettings) -> list[SaeSource]:
    """List the SAEs of the layers that are asked for, in rising order of layers.

    Raises:
        SteerlensError: there is no such release, or a layer has no SAE.
    """
    return saes.sae_sources(settings, count_layers(settings.model))


def load_sae(source: SaeSource, settings: SubjectSettings) -> tuple[SAE[Any], dict[str, Any]]:
    """Load the SAE of `source` on the CPU in the run's dtype, and its identity for provenance.

    Decoder norms are not folded: scores are those of the SAE as released.

    Raises:
        SteerlensError: it can't be loaded, or isn't one that scores could be told of.
    """
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name

    torch_dtype = resolve_dtype(settings.dtype, settings.device, settings.device_map)
    dtype = str(torch_dtype).removeprefix("torch.")
    with warnings.catch_warnings():
        # SAELens warns about model kwargs; `load_model` follows them and records it.
        warnings.simplefilter("ignore")
        try:
            if source.path:
                sae = SAE.load_from_disk(source.path, "cpu", dtype, converter=_read_folder)
                identity = folder_identity(source.path, settings.cache_dir)
            else:
                assert source.release is not None
                assert source.sae_id is not None
                with _shapes_from_files():
                    sae = SAE.from_pretrained(source.release, source.sae_id, "cpu", dtype)
                repo_id, folder = get_repo_id_and_folder_name(source.release, source.sae_id)
                identity = {"repo_id": repo_id, "path": folder, "revision": hub_revision(repo_id)}
        except SteerlensError:
            raise
        except MemoryError:
            raise
        except Exception as error:
            raise SteerlensError(
                f"can't load the SAE {source}: {type(error).__name__}: {error}"
            ) from error
    if (k := getattr(sae.cfg, "k", None)) is not None:
        check_k(k, int(sae.cfg.d_sae), f"the SAE {source}")
    sae.eval().requires_grad_(False)
    # Heads' outputs come and go as one vector here; the bridge's shape is the engine's business.
    sae.turn_off_forward_pass_hook_z_reshaping()
    _refuse_broken_weights(sae, source)
    _refuse_unscaled(sae, source)
    return sae, {
        **identity,
        "release": source.release,
        "sae_id": source.sae_id,
        "architecture": sae.cfg.architecture(),
        "d_sae": sae.cfg.d_sae,
        "normalize_activations": sae.cfg.normalize_activations,
        "decoder_norm_folded": False,
        "metadata": _plain(sae.cfg.metadata.to_dict()),
    }


def _read_folder(
    path: str | Path, device: str, cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read config and weights as SAELens does; also a config with a byte order mark, and folders
    of other libraries.
    """
    config = sae_config(Path(path))
    _refuse_other_activation(config, path)
    config |= {"device": device, **(cfg_overrides or {})}
    file = weights_file(Path(path))
    assert file is not None  # `sae_folders` has seen it
    return read_weights(file, config, device)


@contextmanager
def _shapes_from_files() -> Iterator[None]:
    """Let SAELens read the shapes of some SAEs from the file that it is about to load.

    It asks the hub for the file's header each time, so that Gemma Scope 2 couldn't be loaded
    offline, cached or not.
    """
    from huggingface_hub import hf_hub_download
    from sae_lens.loading import pretrained_sae_loaders

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        return tensor_shapes(Path(hf_hub_download(repo_id, filename)))

    asks_hub = pretrained_sae_loaders.get_safetensors_tensor_shapes
    pretrained_sae_loaders.get_safetensors_tensor_shapes = shapes
    try:
        yield
    finally:
        pretrained_sae_loaders.get_safetensors_tensor_shapes = asks_hub


def _refuse_unscaled(sae: SAE[Any], source: SaeSource) -> None:
    """Refuse an SAE of activations that are scaled by a factor which nothing here knows."""
    if sae.cfg.normalize_activations == "expected_average_only_in":
        raise SteerlensError(
            f"the SAE {source} reads activations scaled by a factor that isn't folded into its "
            "weights (normalize_activations=expected_average_only_in), as in SAELens' intermediate "
            "checkpoints; use the final one, or fold the factor in with SAELens' "
            "fold_activation_norm_scaling_factor and save_model."
        )


def _refuse_other_activation(config: Mapping[str, Any], source: object) -> None:
    """Refuse a config older than SAELens 6 whose activation function isn't what it's loaded as."""
    name = str(config.get("activation_fn", config.get("activation_fn_str")) or "relu")
    settings = config.get("activation_fn_kwargs") or {}
    is_topk = name == "topk" and settings.get("k") is not None and not settings.get("signed")
    if name != "relu" and not is_topk:
        raise SteerlensError(
            f"the SAE {source} has the activation function {name}"
            + (f" with {dict(settings)}" if settings else "")
            + ", which SAELens 6 would load as another one; relu, and topk with its k, are loaded."
        )


def _refuse_broken_weights(sae: SAE[Any], source: SaeSource) -> None:
    """Refuse weights that aren't finite, or were never written and would score nothing."""
    for name, parameter in sae.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SteerlensError(f"the SAE {source} has NaN or infinite values in {name}.")
        if name in ("W_enc", "W_dec") and not parameter.any():
            raise SteerlensError(f"the SAE {source} has only zeros in {name}; it isn't trained.")


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in metadata.items()
        if isinstance(value, str | int | float | bool | list | dict | None)
    }
