"""Train the SAEs of the default on shards of activations, as they are written.

    python -m experiments.smollm2.train --scratch DIR --shards 64 --target DIR

All SAEs of all layers see the same batches. Every shard is seen twice: when it is new, and once
more among later ones. A killed run goes on from its last checkpoint (`checkpoint.safetensors`,
every `CHECKPOINT_SHARDS` shards)."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.smollm2.activations import CONTEXT, LAYERS, ROWS, write
from experiments.smollm2.step import (
    Settings,
    Trainee,
    inference_weights,
    new_trainee,
    optimiser,
    take_step,
)

RELEASES = {
    "smollm2-topk": Settings("topk", d_sae=4096, k=64),
    "smollm2-batchtopk": Settings("batchtopk", d_sae=1024, k=64),
}
BATCH = 1020
LR = 2e-3
WARMUP, DECAY = 0.05, 0.4
CHECKPOINT_SHARDS = 4
MAX_NORM = 10
"""Times the median norm, beyond which a token is shortened."""
ADAM_STATE = ("exp_avg", "exp_avg_sq")


def schedule(progress: float) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, linear decay to a
    hundredth."""
    if progress < WARMUP:
        return progress / WARMUP
    return min(1.0, max(0.01, (1 - progress) / DECAY))


def order_of_shards(n: int) -> list[int]:
    """List shard numbers, each twice: new ones in order, and after each second one an older one
    again."""
    order: list[int] = []
    for number in range(n):
        order.append(number)
        if number % 2:
            order.append(number // 2)
    return order + list(range(n // 2, n))


def wait_for(file: Path) -> Tensor:
    while not file.exists():
        time.sleep(2)
    return load_file(file)["acts"]


def cap_norms(acts_ND: Tensor, cap: float) -> Tensor:
    """Shorten the few tokens that are longer than `cap`.

    From block 10 on, one token in ten thousand besides position 0 is a massive activation, 150
    times as long as others: its squared error would be that of 20,000 tokens. Shortened, it teaches
    its direction and no more."""
    norm_N1 = acts_ND.norm(dim=-1, keepdim=True)
    return acts_ND * (cap / norm_N1).clamp(max=1)


def save_checkpoint(
    file: Path, trainees: dict[str, Trainee], adams: dict[str, torch.optim.Adam], done: int
) -> None:
    tensors: dict[str, Tensor] = {"done": torch.tensor(done)}
    for name, sae in trainees.items():
        tensors[f"{name}.threshold"] = torch.tensor(sae.threshold, dtype=torch.float64)
        tensors[f"{name}.scale"] = torch.tensor(sae.scale, dtype=torch.float64)
        tensors[f"{name}.since"] = sae.steps_since_fired
        for index, parameter in enumerate(sae.parameters):
            tensors[f"{name}.{index}"] = parameter.detach()
            for key in (*ADAM_STATE, "step"):
                tensors[f"{name}.{index}.{key}"] = adams[name].state[parameter][key]
    write({key: value.clone() for key, value in tensors.items()}, file)


def load_checkpoint(
    file: Path, trainees: dict[str, Trainee], adams: dict[str, torch.optim.Adam]
) -> int:
    tensors = load_file(file)
    for name, sae in trainees.items():
        sae.threshold = float(tensors[f"{name}.threshold"])
        sae.scale = float(tensors[f"{name}.scale"])
        sae.steps_since_fired = tensors[f"{name}.since"]
        for index, parameter in enumerate(sae.parameters):
            parameter.data = tensors[f"{name}.{index}"]
            adams[name].state[parameter] = {
                key: tensors[f"{name}.{index}.{key}"] for key in (*ADAM_STATE, "step")
            }
    return int(tensors["done"])


def save_sae(sae: Trainee, layer: int, folder: Path, facts: dict[str, object]) -> None:
    """Write an SAE in SAELens' format, in bfloat16."""
    topk = sae.settings.architecture == "topk"
    config = {
        "architecture": "topk" if topk else "jumprelu",
        "d_in": sae.W_dec.shape[1],
        "d_sae": sae.settings.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **({"k": sae.settings.k, "rescale_acts_by_decoder_norm": False} if topk else {}),
        "metadata": {
            "model_name": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "gguf_sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "model_class_name": "TransformerBridge",
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "hook_head_index": None,
            "model_from_pretrained_kwargs": {},
            "prepend_bos": True,
            "exclude_first_position": True,
            "context_size": CONTEXT,
            # Without its version SAELens takes the file for one of before metadata.
            "sae_lens_version": version("sae-lens"),
            "sae_lens_training_version": version("sae-lens"),
            **facts,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.bfloat16() for key, value in inference_weights(sae).items()}
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def save_saes(trainees: dict[str, Trainee], target: Path, shards_seen: int) -> None:
    for name, sae in trainees.items():
        layer = int(name.rsplit("_", 1)[1])
        tokens = shards_seen * ROWS * (CONTEXT - 1) // BATCH * BATCH
        save_sae(sae, layer, target / name, {"training_tokens": tokens})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS)
    parser.add_argument("--releases", nargs="*", default=list(RELEASES))
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--k", type=int)
    parser.add_argument("--save", type=Path, help="write the last checkpoint's SAEs there and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.scratch / "activations"
    first = wait_for(folder / "0000.safetensors").float()
    trainees: dict[str, Trainee] = {}
    caps: dict[int, float] = {}
    for seed, release in enumerate(arguments.releases):
        settings = RELEASES[release]
        settings = replace(settings, k=arguments.k or settings.k)
        for layer in arguments.layers:
            acts = first[:, LAYERS.index(layer)]
            caps[layer] = MAX_NORM * acts.norm(dim=-1).median().item()
            acts = cap_norms(acts, caps[layer])
            mean_norm = acts.norm(dim=-1).mean().item()
            trainees[f"{release}/layer_{layer}"] = new_trainee(
                settings, acts.mean(0), mean_norm, seed
            )
    adams = {name: optimiser(sae, arguments.lr) for name, sae in trainees.items()}
    arguments.target.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.target / "checkpoint.safetensors"
    done = load_checkpoint(checkpoint, trainees, adams) if checkpoint.exists() else 0
    order = order_of_shards(arguments.shards)
    if arguments.save:
        save_saes(trainees, arguments.save, done)
        return
    for position, number in enumerate(order[done:], start=done):
        acts = wait_for(folder / f"{number:04d}.safetensors")
        start = time.monotonic()
        batches = acts[torch.randperm(len(acts), generator=torch.Generator().manual_seed(position))]
        batches = batches.split(BATCH)
        batches = [batch for batch in batches if len(batch) == BATCH]
        total: dict[str, list[dict[str, float]]] = {name: [] for name in trainees}
        for index, batch in enumerate(batches):
            progress = (position + index / len(batches)) / len(order)
            x = batch.float()
            for name, sae in trainees.items():
                for group in adams[name].param_groups:
                    group["lr"] = arguments.lr * schedule(progress)
                layer = int(name.rsplit("_", 1)[1])
                take_step(sae, adams[name], cap_norms(x[:, LAYERS.index(layer)], caps[layer]))
                total[name].append(sae.metrics)
        if (position + 1) % CHECKPOINT_SHARDS == 0 or position + 1 == len(order):
            save_checkpoint(checkpoint, trainees, adams, position + 1)
        seconds = time.monotonic() - start
        explained = {
            name: sum(m["explained"] for m in metrics[-8:]) / 8 for name, metrics in total.items()
        }
        shown = " ".join(
            f"{value:.3f}/{total[name][-1]['dead']:.0f}" for name, value in explained.items()
        )
        rate = len(batches) * BATCH / seconds
        print(
            f"{position + 1}/{len(order)} shard {number}: {rate:.0f} tokens/s {shown}", flush=True
        )
    save_saes(trainees, arguments.target, len(order))


if __name__ == "__main__":
    main()
