"""Measure trained SAEs against the goals, on text that they weren't trained on.

    python -m experiments.smollm2.measure --model DIR --scratch DIR --target DIR

For each SAE and both kinds of held-out text (documents like the training's; chats and stories that
the model wrote): explained variance `1 - sum|x - xhat|^2 / sum|x - mean|^2` and L0 over all tokens
but position 0, the same without massive activations (tokens over `MAX_NORM` times the median
length, one in some thousand, which can be most of the variance), the share of features that never
fire on either, and how many nats a token the next-token loss rises when the reconstruction takes
the place of the residual stream at all positions but 0. Writes `measured.json` beside the SAEs;
`--only release/layer_9` measures one of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from experiments.smollm2.activations import BATCH, LAYERS, Rows, residuals
from experiments.smollm2.train import MAX_NORM

ROWS = 64
"""Rows of each kind for variance and L0: 16,320 tokens."""
SPLICED_ROWS = 16


def held_out_rows(scratch: Path) -> dict[str, np.ndarray]:
    rows = Rows(scratch, held_out=True)
    documents = np.concatenate(list(rows.rows.values()))
    rng = np.random.default_rng(0)
    return {
        "documents": documents[rng.permutation(len(documents))[:ROWS]],
        "written": rows.sampled[rng.permutation(len(rows.sampled))[:ROWS]],
    }


@torch.no_grad()
def collect(base: nn.Module, rows: np.ndarray) -> Tensor:
    """Return activations `[N, n_layers, D]` in float32, without position 0."""
    ids = torch.from_numpy(rows.astype(np.int64)).to(base.device)  # type: ignore[arg-type]
    return torch.cat([residuals(base, part)[:, 1:].flatten(0, 1) for part in ids.split(BATCH)])


@torch.no_grad()
def reconstruction(sae: SAE[Any], acts_ND: Tensor) -> tuple[float, float, Tensor]:
    """Return explained variance, L0, and which features fire `[F]`."""
    squared_error, n_active = 0.0, 0
    fires = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=acts_ND.device)
    for part in acts_ND.split(4096):
        latents = sae.encode(part)
        squared_error += (part - sae.decode(latents)).pow(2).sum().item()
        n_active += int((latents > 0).sum())
        fires |= (latents > 0).any(0)
    variance = (acts_ND - acts_ND.mean(0)).pow(2).sum().item()
    return 1 - squared_error / variance, n_active / len(acts_ND), fires


def without_massive(acts_ND: Tensor) -> Tensor:
    """Leave out tokens over `MAX_NORM` times the median length."""
    norm_N = acts_ND.norm(dim=-1)
    return acts_ND[norm_N <= MAX_NORM * norm_N.median()]


@contextmanager
def spliced(lm: nn.Module, layer: int, sae: SAE[Any]) -> Iterator[None]:
    """Put the reconstruction in the place of `resid_post` at all positions but 0."""

    def hook(_module: nn.Module, _args: object, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        hidden = torch.cat([hidden[:, :1], sae(hidden[:, 1:])], dim=1)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = lm.model.layers[layer].register_forward_hook(hook)  # type: ignore[union-attr, operator]
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def loss(lm: nn.Module, rows: np.ndarray) -> float:
    """Return the mean next-token loss in nats, predicted from positions 1 on."""
    ids = torch.from_numpy(rows[:SPLICED_ROWS].astype(np.int64)).to(lm.device)  # type: ignore[arg-type]
    losses = []
    for part in ids.split(8):
        logits = lm(part).logits[:, 1:-1].float()
        losses.append(cross_entropy(logits.flatten(0, 1), part[:, 2:].flatten()).item())
    return float(np.mean(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--no-splice", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="*/layer_*", help="which SAEs, as a pattern")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lm = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    lm.to(arguments.device)  # type: ignore[arg-type]
    rows = held_out_rows(arguments.scratch)
    acts = {kind: collect(lm.model, part) for kind, part in rows.items()}
    plain = {} if arguments.no_splice else {kind: loss(lm, part) for kind, part in rows.items()}
    measured: dict[str, Any] = {"loss": plain, "saes": {}}
    for config in sorted(arguments.target.glob(f"{arguments.only}/cfg.json")):
        sae = SAE.load_from_disk(config.parent, device=arguments.device, dtype="float32")
        layer = int(config.parent.name.split("_")[1])
        found: dict[str, Any] = {}
        fires = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=arguments.device)
        for kind, part in acts.items():
            explained, l0, fired = reconstruction(sae, part[:, LAYERS.index(layer)])
            fires |= fired
            ordinary, _, _ = reconstruction(sae, without_massive(part[:, LAYERS.index(layer)]))
            found[kind] = {
                "explained_variance": round(explained, 4),
                "explained_variance_without_massive": round(ordinary, 4),
                "l0": round(l0, 2),
            }
            if plain:
                with spliced(lm, layer, sae):
                    found[kind]["added_loss"] = round(loss(lm, rows[kind]) - plain[kind], 4)
        found["never_fires"] = round(1 - fires.float().mean().item(), 4)
        name = f"{config.parent.parent.name}/{config.parent.name}"
        measured["saes"][name] = found
        print(name, json.dumps(found), flush=True)
        (arguments.target / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
