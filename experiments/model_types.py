"""Which model types steerlens runs exactly: a table of all that the bridge supports.

Every causal language model that TransformerLens' bridge supports and the installed Transformers can
build is made tiny and random, saved, and loaded as a user's would be. `experiments/model_types.md`
says what came of it.

    python -m experiments.model_types [TYPE ...]
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from sae_lens.saes.sae import SAEMetadata
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

from steerlens.config.schema import ModelConfig, PathsConfig, RunConfig
from steerlens.config.settings import parse_subject
from steerlens.engine.subject.model import load_model
from steerlens.errors import SteerlensError
from tests.support.tiny import SMALL, save_tokenizer

TABLE = Path(__file__).with_suffix(".md")
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How the classes of models end that continue texts."""

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
"""Multi-head latent attention, made small."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "DeepseekV2ForCausalLM": {"": LATENT},
    "DeepseekV3ForCausalLM": {"": LATENT},
    "Glm4MoeLiteForCausalLM": {"": LATENT},
    "YoutuForCausalLM": {"": LATENT},
    "GPTNeoForCausalLM": {"": {"attention_types": [[["global", "local"], 2]]}},
    "Gemma4ForCausalLM": {"": {"head_dim": None}},
    "FalconForCausalLM": {
        "multi-query": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
        "ALiBi": {"new_decoder_architecture": False, "multi_query": False, "alibi": True},
        "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    },
    "OPTForCausalLM": {
        "": {"word_embed_proj_dim": 32},
        "350m's projections": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    },
    "PhiForCausalLM": {"": {}, "qk_layernorm": {"qk_layernorm": True}},
    "CohereForCausalLM": {"": {}, "use_qk_norm": {"use_qk_norm": True}},
    "StableLmForCausalLM": {"": {}, "qk_layernorm": {"qk_layernorm": True}},
    "GPTBigCodeForCausalLM": {"": {}, "multi-head": {"multi_query": False}},
    "GPTNeoXForCausalLM": {"": {}, "sequential": {"use_parallel_residual": False}},
}
"""Settings that real models of a type differ in and that lead to other code, and what makes some
types small; None leaves a setting of `SMALL` out."""


class Row(NamedTuple):
    """A type of model, and what steerlens makes of it."""

    architecture: str
    variant: str
    model_type: str
    outcome: str
    about: str


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    rows = []
    for architecture in sorted(SUPPORTED_ARCHITECTURES):
        if architecture.endswith(CAUSAL) and (not names or architecture in names):
            for row in rows_of(architecture):
                print(*row, sep=" | ", flush=True)
                rows.append(row)
    if not names:
        TABLE.write_text(table(rows), encoding="utf-8")


def rows_of(architecture: str) -> Iterator[Row]:
    """Load each variant of a type."""
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        yield Row(architecture, "", "", "not built", "the installed Transformers has no such class")
        return
    for variant, settings in VARIANTS.get(architecture, {"": {}}).items():
        yield row_of(architecture, model_class, variant, settings)


def row_of(architecture: str, model_class: Any, variant: str, settings: Mapping[str, Any]) -> Row:
    """Build a tiny model, and load it as a user's."""
    model_type = model_class.config_class.model_type
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        try:
            save_tiny(folder, model_class, settings)
        except Exception as error:
            about = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return Row(architecture, variant, model_type, "not built", about)
        entry = ModelConfig(name=model_type, path=str(folder))
        config = RunConfig(
            model=entry, device="cpu", dtype="float32", paths=PathsConfig(name, str(folder / "c"))
        )
        try:
            lm = load_model(parse_subject(config), SAEMetadata())
        except SteerlensError as error:
            return Row(architecture, variant, model_type, "refused", str(error))
        except Exception as error:
            about = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return Row(architecture, variant, model_type, "CRASHED", about)
    found = lm.agreement
    mended = [
        *(["the model's own attention"] if found.own_attention else []),
        *(["rows from the first block on"] if found.rows_from_start else []),
    ]
    outcome = "made right" if mended else "exact"
    return Row(
        architecture, variant, model_type, outcome,
        "; ".join([*mended, f"difference {found.difference:.1e}"]),
    )  # fmt: skip


def save_tiny(folder: Path, model_class: Any, settings: Mapping[str, Any]) -> None:
    """Save a random model of a class with few and small layers, and a tokenizer."""
    torch.manual_seed(0)
    config = tiny_config(model_class.config_class, settings)
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5]]))  # or these settings make no model of the type
    model.save_pretrained(folder)
    save_tokenizer(folder)


def tiny_config(config_class: Any, settings: Mapping[str, Any]) -> Any:
    """A small config: the settings of `SMALL` that the class has, and `settings`."""
    default = config_class()
    computed = {
        name for name, what in inspect.getmembers(config_class) if isinstance(what, property)
    }
    has = {
        name: value
        for name, value in SMALL.items()
        if hasattr(default, name) and name not in computed
    }
    chosen = {**has, **settings}
    return config_class(**{name: value for name, value in chosen.items() if value is not None})


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    counts = {
        name: sum(row.outcome == name for row in rows)
        for name in dict.fromkeys(row.outcome for row in rows)
    }
    lines = [
        "# Model types",
        "",
        f"Made by `python -m experiments.model_types` with transformer-lens "
        f"{version('transformer-lens')} and transformers {version('transformers')}: "
        + ", ".join(f"{n} {name}" for name, n in counts.items())
        + ".",
        "",
        "| architecture | variant | model type | outcome | |",
        "|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
