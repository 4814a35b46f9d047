"""Put trained SAEs into the distribution `steerlens-smollm2`, with a card of what they are.

    python -m experiments.smollm2.ship --scratch DIR --target DIR

Copies each release of `--target` and writes `card.json` from `measured.json` (see `measure.py`) and
the sources of the text (see `corpus.py`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from experiments.smollm2.activations import CONTEXT, LAYERS, PREPEND_BOS, Rows
from experiments.smollm2.corpus import SHIPPABLE
from experiments.smollm2.train import BATCH, DECAY, LR, MAX_NORM, RELEASES, WARMUP

PACKAGE = Path(__file__).parents[2] / "packages" / "smollm2" / "steerlens_smollm2"


def text_facts(scratch: Path) -> dict[str, int]:
    """Count the tokens of each source that shards were drawn from."""
    counts = {
        file.stem: len(np.load(file))
        for file in sorted((scratch / "tokens").glob("*.npy"))
        if not file.stem.endswith(".starts")
    }
    return {**counts, "samples": len(Rows(scratch).sampled) * CONTEXT}


def card(scratch: Path, target: Path, releases: list[str]) -> dict[str, Any]:
    config = json.loads((target / releases[0] / f"layer_{LAYERS[0]}" / "cfg.json").read_text())
    shards = sorted((scratch / "activations").glob("*.safetensors"))
    return {
        "model": config["metadata"]["model_name"],
        "gguf_sha256": config["metadata"]["gguf_sha256"],
        "layers": list(LAYERS),
        "releases": {name: vars(RELEASES[name]) for name in releases},
        "training": {
            "distinct_tokens": sum(len(load_file(shard)["acts"]) for shard in shards),
            "tokens_seen": config["metadata"]["training_tokens"],
            "batch": BATCH,
            "lr": LR,
            "warmup": WARMUP,
            "decay": DECAY,
            "context": CONTEXT,
            "prepend_bos": PREPEND_BOS,
            "longest_norm": f"{MAX_NORM} times the median; longer tokens are shortened",
            "tokens_by_source": text_facts(scratch),
            "sources_whose_texts_may_be_shown": list(SHIPPABLE),
        },
        "held_out": json.loads((target / "measured.json").read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    arguments = parser.parse_args()
    releases = [name for name in RELEASES if (arguments.target / name).is_dir()]
    for release in releases:
        shutil.rmtree(PACKAGE / release, ignore_errors=True)
        shutil.copytree(arguments.target / release, PACKAGE / release)
    path = PACKAGE / "card.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    shipped = card(arguments.scratch, arguments.target, releases)
    if "jacobians" in earlier:  # of the model, written by `jacobians.py`
        shipped["jacobians"] = earlier["jacobians"]
    path.write_text(json.dumps(shipped, indent=1) + "\n")


if __name__ == "__main__":
    main()
