"""Put Jacobians into the distribution `steerlens-smollm2`, from those that a run has kept.

    steerlens lens=jacobian layer=all corpus=embedded features.n=1
    python -m experiments.smollm2.jacobians --kept CACHE/scores/KEY/jacobians.safetensors

Writes their mean in float16 and, into `card.json`, what they are the mean of and how far two halves
of the sequences agree: over all features of each SAE the mean cosine of `J d_i`, and the share of
the 20 tokens that both have. Beside it the shares of tokens that the float32 mean and the logit
lens have, too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from experiments.smollm2.ship import PACKAGE
from experiments.smollm2.train import RELEASES
from steerlens import load_subject
from steerlens.config.schema import LensConfig
from steerlens.engine.jacobian import Halves, unpacked
from steerlens.engine.lens import convergence, promoted_tokens
from steerlens.engine.logit_lens import logit_lens
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.storage.files import atomic_write
from steerlens.storage.store import KEY_FILE

FILE = PACKAGE / "jacobians.safetensors"
K = 20


def layer_of(hook_name: str) -> int:
    return int(hook_name.split(".")[1])


def pack(halves: Halves, model: str) -> bytes:
    """Return the file: the mean of each layer, in float16."""
    hook_names = sorted(halves.sums[0], key=layer_of)
    J_SDD = torch.stack([halves.mean(name) for name in hook_names]).half()
    assert torch.isfinite(J_SDD).all(), "an entry is beyond float16"
    layers = torch.tensor([layer_of(name) for name in hook_names])
    return save({"J": J_SDD, "source_layers": layers}, {"model": model})


def overlap(tokens_FK: torch.Tensor, other_FK: torch.Tensor) -> float:
    """Return the mean share of the tokens of a feature that it has in the other row, too."""
    shared = (tokens_FK[:, :, None] == other_FK[:, None]).any(dim=-1)
    return float(shared.float().mean())


def agreement(subject: Subject, halves: Halves) -> dict[str, float]:
    """Return how far the tokens of a layer depend on the sequences, on rounding and on the lens."""
    features = torch.arange(subject.d_sae)
    hook_name = subject.site.write

    def context(of_lens: Halves) -> RunContext:
        ctx = RunContext(lens=LensConfig("jacobian"))
        ctx.cache.jacobians[hook_name] = of_lens
        return ctx

    mean_DD = halves.mean(hook_name).half().float()
    rounded = Halves(2, ({hook_name: mean_DD}, {hook_name: mean_DD}))
    tokens_FK = promoted_tokens(subject, features, K, context(halves))
    of_halves = convergence(subject, features, K, context(halves))
    budget = RunContext().memory_budget
    numbers = {
        "cosine_of_halves": of_halves.cosine,
        "tokens_in_both_halves": of_halves.overlap,
        "tokens_in_float32": overlap(
            tokens_FK, promoted_tokens(subject, features, K, context(rounded))
        ),
        "tokens_of_logit_lens": overlap(tokens_FK, logit_lens(subject, features, K, budget)),
    }
    return {name: round(number, 4) for name, number in numbers.items()}


def card(halves: Halves, key: dict[str, Any]) -> dict[str, Any]:
    """Return what the card says of the file."""
    saes = {}
    for release in RELEASES:
        for hook_name in sorted(halves.sums[0], key=layer_of):
            subject = load_subject(sae=release, layer=layer_of(hook_name))
            saes[f"{release}/layer_{subject.layer}"] = agreement(subject, halves)
    return {
        "sequences": halves.n,
        "tokens_of_a_sequence": key["context_length"],
        "corpus": key["corpus"],
        "saes": saes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kept", type=Path, required=True)
    arguments = parser.parse_args()
    halves = unpacked(load_file(arguments.kept))
    key = json.loads((arguments.kept.parent / KEY_FILE).read_text())
    path = PACKAGE / "card.json"
    shipped = json.loads(path.read_text())
    shipped["jacobians"] = card(halves, key)
    with atomic_write(FILE) as stream:
        stream.write(pack(halves, shipped["model"]))
    path.write_text(json.dumps(shipped, indent=1) + "\n")
    print(json.dumps(shipped["jacobians"]["saes"], indent=1))


if __name__ == "__main__":
    main()
