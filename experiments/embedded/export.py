"""Write the trained language model the way Hugging Face lays models out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from lm import build_model, load_checkpoint, validation_loss
from prepare import load_rows, load_tokenizer
from settings import Settings
from transformers import AutoModelForCausalLM, PreTrainedModel

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def export_model(settings: Settings, folder: Path) -> dict[str, float]:
    """Store half-precision weights; returns the validation loss before and after."""
    model = build_model(settings)
    load_checkpoint(settings.checkpoint, model)
    rows = load_rows(settings, "validation")
    before = validation_loss(model, rows)
    folder.mkdir(parents=True, exist_ok=True)
    # float16, not bfloat16: weights of order 1 need the mantissa, not the range.
    model.half().save_pretrained(folder)
    load_tokenizer(settings).save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        _tidy_config(folder / name)
    for path in folder.iterdir():
        if path.name not in MODEL_FILES:
            path.unlink()
        else:
            path.chmod(0o644)
    after = validation_loss(load_model(folder), rows)
    return {"float32": before, "stored": after}


def load_model(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def _tidy_config(path: Path) -> None:
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    if "dtype" in config:
        config["dtype"] = "float32"  # half is only for the disk: the model computes in float32
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
