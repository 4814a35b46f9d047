"""Last stage: card.json and README.md of the shipped files, from measurements only."""

from __future__ import annotations

import json
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from export import load_model
from lm import bits_per_byte, validation_loss
from prepare import load_rows, load_sizes, read_corpus
from quality import Splicing, load_sae, reconstruction, residuals
from settings import Settings

#: Rows of 128 tokens; the whole validation split would take ten minutes more for no digit.
ACTIVATION_ROWS = 800
SPLICE_ROWS = 256
MAIN_SOURCES = 40
TYPES = {"llama": "Llama", "gpt_neox": "GPT-NeoX", "gpt2": "GPT-2", "gemma2": "Gemma-2"}
LIBRARIES = ("torch", "transformers", "tokenizers", "sae-lens", "transformer-lens", "safetensors")


def text_sources(settings: Settings) -> dict[str, Any]:
    """Packages whose text was read, largest first, with the version that was installed."""
    characters: Counter[str] = Counter()
    for split in ("train", "validation"):
        for document in read_corpus(settings, split):
            characters[document["module"].partition(".")[0]] += len(document["text"])
    owners = packages_distributions()
    merged: Counter[str] = Counter()
    for package, count in characters.items():
        merged[_source(owners.get(package))] += count
    main = dict(merged.most_common(MAIN_SOURCES))
    return {
        "main": {
            name: {"characters": count, "version": _version(name)} for name, count in main.items()
        },
        "other_packages": len(merged) - len(main),
        "other_characters": sum(merged.values()) - sum(main.values()),
    }


def _source(distributions: list[str] | None) -> str:
    return distributions[0] if distributions else "python"


def _version(name: str) -> str:
    try:
        return platform.python_version() if name == "python" else version(name)
    except PackageNotFoundError:
        return "unknown"


def measure_model(settings: Settings, folder: Path) -> dict[str, Any]:
    model = load_model(folder)
    loss = validation_loss(model, load_rows(settings, "validation"))
    progress = json.loads((settings.checkpoint / "progress.json").read_text())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": progress["step"],
        "tokens_seen": progress["tokens"],
        "epochs": round(progress["epochs"], 3),
        "training_minutes_by_the_clock": round(progress["minutes"], 1),
        "validation_loss": round(loss, 4),
        "bits_per_byte": round(bits_per_byte(loss, settings), 4),
    }


def measure_saes(settings: Settings, target: Path) -> dict[str, dict[str, Any]]:
    model = load_model(target / "model")
    rows = load_rows(settings, "validation")
    acts = residuals(model, rows[:ACTIVATION_ROWS])
    splicing = Splicing(model, rows[:SPLICE_ROWS])
    found: dict[str, dict[str, Any]] = {}
    for release in settings.saes:
        layers = found[release.release] = {}
        for layer, acts_ND in enumerate(acts):
            sae = load_sae(target / release.release / f"layer_{layer}")
            values = reconstruction(sae, acts_ND) | splicing.measure(layer, sae)
            layers[f"layer_{layer}"] = {k: round(v, 4) for k, v in values.items()}
    return found


def write_card(settings: Settings, target: Path, minutes: dict[str, float]) -> None:
    model = measure_model(settings, target / "model")
    # A resumed training has taken longer than the stage that ended it.
    minutes = minutes | {"lm": model["training_minutes_by_the_clock"]}
    card = {
        "name": settings.name,
        "licence_note": "weights trained on the documentation of installed open-source packages",
        "text": {**load_sizes(settings), "sources": text_sources(settings)},
        "model": model,
        "saes": measure_saes(settings, target),
        "measured_on": {
            "validation_rows": {"activations": ACTIVATION_ROWS, "splicing": SPLICE_ROWS},
            "tokens_per_row": settings.model.context,
        },
        "settings": settings.as_dict(),
        "build_minutes": {stage: round(value, 1) for stage, value in minutes.items()},
        "built_with": {"python": platform.python_version(), **{n: _version(n) for n in LIBRARIES}},
    }
    (target / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (target / "README.md").write_text(render(card))


def render(card: dict[str, Any]) -> str:
    model, text, shape = card["model"], card["text"], card["settings"]["model"]
    sources = ", ".join(
        f"{name} {entry['version']}" for name, entry in list(text["sources"]["main"].items())[:12]
    )
    lines = [
        f"# {card['name']}",
        "",
        *_purpose(card["settings"]["variant"]),
        "Every number below is written by that script; `card.json` has all of them.",
        "",
        f"- **Model**: {TYPES[shape['family']]}-type, {shape['n_layers']} blocks "
        f"of width {shape['d_model']}, "
        f"vocabulary {card['settings']['tokenizer']['vocabulary']:,}, context {shape['context']}; "
        f"{model['parameters'] / 1e6:.1f}M parameters, stored in float16, used in float32.",
        f"- **Text**: docstrings, long strings and language reference of the Python "
        f"standard library and {len(text['sources']['main']) + text['sources']['other_packages']} "
        f"installed packages ({sources}, ...): {text['train']['documents']:,} documents of "
        f"{text['train']['modules']:,} modules, "
        f"{text['train']['tokens'] / 1e6:.1f}M tokens.",
        f"- **Training**: {model['steps']:,} steps, {model['tokens_seen'] / 1e6:.1f}M tokens "
        f"({model['epochs']:.2f} epochs), {model['training_minutes_by_the_clock']:.0f} "
        "minutes by the clock on two CPU cores shared with other work.",
        f"- **Validation** ({text['validation']['modules']:,} held-out modules): "
        f"{model['validation_loss']:.3f} nats a token, {model['bits_per_byte']:.3f} bits a byte.",
        "",
        "It writes text that looks like documentation and knows nothing reliably.",
        "",
    ]
    for release in card["settings"]["saes"]:
        lines += _release_table(release, card["saes"][release["release"]])
    lines += [
        "Explained variance, L0 and dead share: "
        f"{card['measured_on']['validation_rows']['activations']} validation rows of "
        f"{card['measured_on']['tokens_per_row']} tokens without BOS; recovered loss: between zero "
        f"ablation and the clean model ({_clean_loss(card):.3f}), "
        f"{card['measured_on']['validation_rows']['splicing']} rows.",
        "",
        "Licence note: " + card["licence_note"] + ". No text of theirs is shipped.",
        "",
    ]
    return "\n".join(lines)


def _purpose(variant: str) -> list[str]:
    if variant:
        return [
            "A small language model and sparse autoencoders for it, trained from scratch by",
            f"`python experiments/embedded/build.py --family {variant}` to compare architectures.",
        ]
    return [
        "A small language model and two releases of sparse autoencoders for it, trained from",
        "scratch by `python experiments/embedded/build.py`, so that a first run of steerlens needs",
        "no network.",
    ]


def _clean_loss(card: dict[str, Any]) -> float:
    return next(iter(card["saes"].values()))["layer_0"]["ce_clean"]


def _release_table(release: dict[str, Any], layers: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"## {release['release']}: {release['architecture']}, {release['d_sae']:,} features",
        "",
        f"Trained with SAELens on {release['tokens'] / 1e6:.1f}M tokens a layer, "
        f"k {release['options']['k']}.",
        "",
        "| layer | explained variance | L0 | dead share | loss spliced in | loss recovered |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name.removeprefix('layer_')} | {v['explained_variance']:.3f} | {v['l0']:.1f} | "
            f"{v['dead_share']:.3f} | {v['ce_spliced']:.3f} | {v['ce_recovered']:.3f} |"
            for name, v in layers.items()
        ),
        "",
    ]
