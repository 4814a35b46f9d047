"""Build everything that `src/steerlens/embedded/` ships: one command, five stages.

python experiments/embedded/build.py                    # all stages that have not been done
python experiments/embedded/build.py --stage saes       # one stage, again
python experiments/embedded/build.py --stop-at 12:00    # the language model ends by the clock

The same stages for another architecture, which isn't shipped:

python experiments/embedded/build.py --family gpt2 --tokens 600000 --target DIR
"""

from __future__ import annotations

import os

# Threads that spin while waiting cost more than they give as soon as anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from card import write_card
from export import export_model
from lm import parse_clock, train
from prepare import is_newer, pack, train_tokenizer, write_corpus
from saes import train_saes
from settings import FAMILIES, PACKAGE, Settings, family_settings, in_float32

STAGES = ("corpus", "tokenizer", "lm", "saes", "card")


class Build:
    """The stages in order; each knows when its result is already there."""

    def __init__(self, settings: Settings, target: Path, stop_at: float | None) -> None:
        self.settings, self.target, self.stop_at = settings, target, stop_at
        self.times_file = settings.work / "minutes.json"

    def corpus(self) -> None:
        write_corpus(self.settings)

    def tokenizer(self) -> None:
        if not self.settings.tokenizer.shipped:
            train_tokenizer(self.settings)
        pack(self.settings)

    def lm(self) -> None:
        train(self.settings, self.stop_at)
        losses = export_model(self.settings, self.target / "model")
        print(f"validation loss, float32 and as stored: {losses}")

    def saes(self) -> None:
        train_saes(self.settings, self.target / "model", self.target)

    def card(self) -> None:
        write_card(self.settings, self.target, self.minutes())

    def done(self, stage: str) -> bool:
        scratch = self.settings.scratch
        weights = self.target / "model" / "model.safetensors"
        last = f"layer_{self.settings.model.n_layers - 1}/sae_weights.safetensors"
        saes = [self.target / release.release / last for release in self.settings.saes]
        return {
            "corpus": lambda: self.settings.corpus_file.exists(),
            "tokenizer": lambda: is_newer(scratch / "sizes.json", self.settings.corpus_file),
            "lm": lambda: is_newer(weights, scratch / "sizes.json"),
            "saes": lambda: all(is_newer(path, weights) for path in saes),
            "card": lambda: is_newer(self.target / "card.json", *saes),
        }[stage]()

    def run(self, stage: str) -> None:
        started = time.time()
        print(f"== {stage}", flush=True)
        method: Callable[[], None] = getattr(self, stage)
        method()
        minutes = self.minutes() | {stage: (time.time() - started) / 60}
        self.times_file.parent.mkdir(parents=True, exist_ok=True)
        self.times_file.write_text(json.dumps(minutes, indent=1) + "\n")

    def minutes(self) -> dict[str, float]:
        return json.loads(self.times_file.read_text()) if self.times_file.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, default=Settings().scratch)
    parser.add_argument("--target", type=Path, help="what is shipped, unless given")
    parser.add_argument("--family", choices=FAMILIES, help="another architecture; needs --target")
    parser.add_argument("--tokens", type=int, default=600_000, help="of a --family")
    parser.add_argument("--sae-tokens", type=int, default=200_000, help="of a --family")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 products")
    parser.add_argument("--threads", type=int, default=Settings().threads)
    parser.add_argument("--stage", choices=STAGES, help="run this one, even when it was done")
    parser.add_argument("--stop-at", help="HH:MM by which the language model is trained")
    arguments = parser.parse_args()
    if arguments.family and arguments.target is None:
        parser.error("--family needs --target: only the default is shipped")
    settings = Settings()
    if arguments.family:
        settings = family_settings(arguments.family, arguments.tokens, arguments.sae_tokens)
    settings = replace(settings, scratch=arguments.scratch, threads=arguments.threads)
    if arguments.float32:
        settings = in_float32(settings)
    torch.set_num_threads(settings.threads)
    stop_at = parse_clock(arguments.stop_at) if arguments.stop_at else None
    build = Build(settings, arguments.target or PACKAGE / "embedded", stop_at)
    for stage in STAGES:
        if arguments.stage == stage or (arguments.stage is None and not build.done(stage)):
            build.run(stage)


if __name__ == "__main__":
    main()
