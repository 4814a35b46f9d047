"""TopK SAEs of every k and width for one layer of the shipped model, on one pass.

python experiments/embedded/grid.py --scratch DIR --target DIR [--k 8 32 128] [--widths 512 2048]

Needs the corpus of `build.py --stage corpus --scratch DIR`. Every SAE becomes a release of its own,
`k32_w2048/layer_5`, and `grid.json` says how good each is.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from card import ACTIVATION_ROWS
from export import load_model
from prepare import is_newer, load_rows, pack
from quality import load_sae, reconstruction, residuals
from saes import Member, train_pass
from settings import GRID_LAYER, PACKAGE, Settings, grid_settings, in_float32


def measure(settings: Settings, members: list[Member], model: Path, target: Path) -> dict[str, Any]:
    """Explained variance, L0 and dead share of every SAE, as on the card."""
    rows = load_rows(settings, "validation")[:ACTIVATION_ROWS]
    acts_ND = residuals(load_model(model), rows)[GRID_LAYER]
    return {
        member.chosen.release: {
            key: round(value, 4)
            for key, value in reconstruction(load_sae(target / member.folder), acts_ND).items()
        }
        for member in members
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, default=Settings().scratch)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 products")
    arguments = parser.parse_args()
    settings = grid_settings(tuple(arguments.k), tuple(arguments.widths), arguments.tokens)
    settings = replace(settings, scratch=arguments.scratch)
    if arguments.float32:
        settings = in_float32(settings)
    if not is_newer(settings.scratch / "sizes.json", settings.corpus_file):
        pack(settings)
    model = PACKAGE / "embedded" / "model"
    members = [Member(chosen, GRID_LAYER) for chosen in settings.saes]
    started = time.time()
    train_pass(settings, members, model, arguments.target, threads=1)
    minutes = round((time.time() - started) / 60, 1)
    torch.set_num_threads(1)
    found = {"minutes": minutes, "saes": measure(settings, members, model, arguments.target)}
    (arguments.target / "grid.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
