"""Checks of model and SAE, of their folders and of what is asked of them, without loading any."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from steerlens.config.belonging import refuse_other_gguf, refuse_other_model
from steerlens.config.catalog import SAE_SETTINGS, read_release
from steerlens.config.entries import entries
from steerlens.config.folders import (
    check_model_folder,
    has_chat_template,
    model_fact,
    sae_facts,
    sae_folders,
)
from steerlens.config.gguf import check_gguf, gguf_file
from steerlens.config.parse import parse_feature_file, parse_ids
from steerlens.config.saes import listed_ids
from steerlens.config.schema import ModelConfig, RunConfig, SaeConfig
from steerlens.config.settings import Settings
from steerlens.errors import SteerlensError


def check_local_model(model: ModelConfig, key: str, cache_dir: Path) -> None:
    """Refuse what lies at `model.path`, given as `key`, if it isn't a whole model."""
    if gguf := gguf_file(model):
        check_gguf(model, gguf, cache_dir)
    elif folder := local_folder(model):
        check_model_folder(folder, key)


def local_folder(model: ModelConfig) -> Path | None:
    """Return the model's folder in the Hugging Face layout; None for a GGUF or a name on the
    hub.
    """
    if gguf_file(model):
        return None
    path = Path(model.path)
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model.path) and model.name != "local"
    return None if is_name and not path.is_dir() else path


def check_one_model(configs: Sequence[RunConfig]) -> None:
    """Refuse a comparison of releases whose jobs are of several models, unless it is asked for."""
    study = configs[0].study
    models = list(dict.fromkeys(config.model.title for config in configs))
    if study.name == "releases" and not study.by_depth and len(models) > 1:
        raise SteerlensError(
            f"these SAEs are for different models ({', '.join(models)}); to compare them by "
            "relative depth, add study.by_depth=true."
        )


def check_template(settings: Settings) -> None:
    """Refuse a chat template that a local model doesn't have."""
    model = settings.subject.model
    has_template = has_chat_template(model)
    if has_template is None:
        return
    settings.steering.for_model(has_template, model.title)
    for score in settings.scores.values():
        if getattr(score, "chat_template", False) and not has_template:
            raise score.refusal("chat_template", f"needs one, which {model.title} hasn't")


def check_context(settings: Settings) -> None:
    """Refuse texts that a local model's context has no room for: with no prompt, or of a corpus."""
    steering, model = settings.steering, settings.subject.model
    n_ctx = model_fact(model, "n_ctx", "max_position_embeddings", "n_positions")
    n_new = steering.generation.max_new_tokens
    if steering.factors and n_ctx is not None and n_new >= n_ctx:
        raise SteerlensError(
            f"generation.max_new_tokens={n_new} leaves no room for a prompt: {model.title} takes "
            f"{n_ctx} tokens in all."
        )
    lengths = [
        (f"context_length={length} of score {name}", length)
        for name, score in settings.scores.items()
        if (length := getattr(score, "context_length", None)) is not None
    ]
    if settings.lens.name == "jacobian" and not settings.lens.path:
        length = settings.lens.context_length
        lengths.append((f"lens.context_length={length}", length))
    for setting, length in lengths:
        if n_ctx is not None and length > n_ctx:
            raise SteerlensError(f"{setting} is more than the {n_ctx} tokens of {model.title}.")


def check_ids(config: RunConfig, layers: list[int] | None) -> None:
    """Refuse features that don't exist, as far as the SAE's size and the `layers` are known."""
    features, d_sae = config.features, config.sae.d_sae
    if config.sae.path:
        sizes = [sae_facts(folder).d_sae for folder in sae_folders(Path(config.sae.path))]
        d_sae = None if None in sizes else max(size for size in sizes if size is not None)
    if features.ids is not None:
        parse_ids(features.ids, d_sae)
    counts = {"features.n": features.n}
    if config.concepts is not None:
        counts["concepts.features"] = config.concepts.features
        counts["concepts.together"] = config.concepts.together
    for key, n in counts.items():
        if n is not None and d_sae is not None and n > d_sae:
            raise SteerlensError(f"{key}={n} is more than the SAE's {d_sae} features.")
    if features.file is not None:
        in_file = list(parse_feature_file(features.file, d_sae))
        for layer in layers or []:
            if layer not in in_file:
                raise SteerlensError(
                    f"features.file={features.file} names no features of layer {layer}; to run "
                    f"the layers of the file, add 'layer={in_file}'."
                )


def check_sae_source(config: RunConfig) -> None:
    """Refuse an SAE that isn't there, or isn't of the run's model."""
    sae = config.sae
    if sae.path and sae.release:
        raise SteerlensError(
            f"sae={sae.name} has a path and a release; for a folder choose sae=local sae.path=DIR."
        )
    if not sae.path and not (sae.release and sae.sae_id):
        needs = "sae.path=DIR" if sae.name == "local" else "sae.release=... and sae.sae_id=..."
        raise SteerlensError(f"sae={sae.name} needs {needs}.")
    _check_sae_settings(sae)
    if placeholders := set(re.findall(r"\{.*?\}", sae.sae_id or "")) - {"{layer}"}:
        raise SteerlensError(
            f"sae.sae_id={sae.sae_id} has {min(placeholders)}, for which there is no value; write "
            "{layer} where the layer stands."
        )
    if sae.model:
        refuse_other_model(f"sae={sae.name}", sae.model, config.model)
    if sae.path:
        d_model = model_fact(config.model, "d_model", "hidden_size", "n_embd", "d_model")
        for folder in sae_folders(Path(sae.path)):
            facts = sae_facts(folder)
            if facts.model_name and not sae.model:
                refuse_other_model(f"the SAE {folder}", facts.model_name, config.model)
            if facts.gguf_sha256:
                refuse_other_gguf(
                    f"the SAE {folder}", facts.gguf_sha256, config.model, config.paths.cache_dir
                )
            if facts.d_in and d_model and facts.d_in != d_model:
                raise SteerlensError(
                    f"the SAE {folder} reads vectors of size {facts.d_in} (d_in), but the residual "
                    f"stream of {config.model.title} has {d_model} (d_model)."
                )
    elif listed_ids(sae) is not None and not sae.model:
        trained_on = read_release(str(sae.release))["model"]
        refuse_other_model(f"SAELens release {sae.release}", trained_on, config.model)


def _check_sae_settings(sae: SaeConfig) -> None:
    """Refuse a choice within a family of an entry that is none, where nothing would follow it."""
    entry = entries("sae").get(sae.name)
    if entry is None or sae.name == "release":
        return
    for setting in SAE_SETTINGS:
        if getattr(sae, setting) is None or setting in entry:
            continue
        families = [name for name, entry in entries("sae").items() if setting in entry]
        near = [name for name in families if entries("sae")[name]["model"] == sae.model]
        raise SteerlensError(
            f"sae={sae.name} has no choice of sae.{setting}; sae={(near or families)[0]} has."
        )
