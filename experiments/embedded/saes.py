"""Fourth stage: the SAE releases, every layer of one on the same pass over the activations.

Each release has a process of its own: two processes with one thread each waste less than one
with two, whose threads wait for each other at every small operation.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from datasets import Dataset
from export import load_model
from prepare import load_rows
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainingSAEConfig
from safetensors.torch import load_file, save_file
from settings import SAESettings, Settings
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

CONFIGS: dict[str, type[TrainingSAEConfig]] = {
    "topk": TopKTrainingSAEConfig,
    "batchtopk": BatchTopKTrainingSAEConfig,
    "jumprelu": JumpReLUTrainingSAEConfig,
}
FILES = ("cfg.json", "sae_weights.safetensors")


class Member(NamedTuple):
    """One of the SAEs that are trained on the same pass over the activations."""

    chosen: SAESettings
    layer: int

    @property
    def name(self) -> str:
        return f"{self.chosen.release}-{self.layer}"

    @property
    def folder(self) -> Path:
        """Where it belongs, from the target."""
        return Path(self.chosen.release) / f"layer_{self.layer}"


def hook_name(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def boot_bridge(folder: Path) -> TransformerBridge:
    """The bridge without compatibility processing: activations are those of the raw model."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return TransformerBridge.boot_transformers(
        str(folder), hf_model=load_model(folder), tokenizer=tokenizer, device="cpu"
    )


def sae_config(settings: Settings, chosen: SAESettings) -> TrainingSAEConfig:
    return CONFIGS[chosen.architecture](
        d_in=settings.model.d_model,
        d_sae=chosen.d_sae,
        # A constant factor, folded into the weights when saved: one learning rate fits all layers.
        normalize_activations="expected_average_only_in",
        **chosen.options,
    )


def runner_config(settings: Settings, members: list[Member]) -> MultiSAETrainingRunnerConfig:
    training = settings.sae_training
    (tokens,) = {member.chosen.tokens for member in members}
    steps = tokens // training.batch
    return MultiSAETrainingRunnerConfig(
        saes={member.name: sae_config(settings, member.chosen) for member in members},
        hook_names={member.name: hook_name(member.layer) for member in members},
        model_name=settings.name,
        model_class_name="TransformerBridge",
        model_from_pretrained_kwargs={},
        dataset_path="steerlens.corpus",
        context_size=settings.model.context,
        streaming=False,
        prepend_bos=True,
        exclude_special_tokens=True,
        n_batches_in_buffer=training.buffer_rows,
        store_batch_size_prompts=32,
        training_tokens=tokens,
        train_batch_size_tokens=training.batch,
        lr=training.lr,
        lr_end=training.lr / 100,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 3,
        dead_feature_window=training.dead_window,
        feature_sampling_window=1000,
        n_batches_for_norm_estimate=32,
        autocast=training.bf16,
        autocast_lm=training.bf16,
        seed=training.seed,
        logger=LoggingConfig(log_to_wandb=False),
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=None,
    )


def train_saes(settings: Settings, model_folder: Path, target: Path) -> None:
    """Train the releases side by side."""
    layers = range(settings.model.n_layers)
    releases = [[Member(chosen, layer) for layer in layers] for chosen in settings.saes]
    threads = max(1, settings.threads // len(settings.saes))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(settings.saes), mp_context=spawn) as pool:
        jobs = [
            pool.submit(train_pass, settings, members, model_folder, target, threads)
            for members in releases
        ]
        for job in jobs:
            job.result()


def train_pass(
    settings: Settings, members: list[Member], model_folder: Path, target: Path, threads: int
) -> None:
    """Train with SAELens' runner, then keep the two files a loader needs, in half precision."""
    logging.getLogger("sae_lens").setLevel(logging.ERROR)  # the override is meant
    torch.set_num_threads(threads)
    training = settings.sae_training
    torch.manual_seed(training.seed)
    rows = load_rows(settings, "train")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(training.seed))
    needed = order[: members[0].chosen.tokens // settings.model.context * 5 // 4 + 1024]
    dataset = Dataset.from_dict({"input_ids": rows[needed].numpy()})
    runner = MultiSAETrainingRunner(
        runner_config(settings, members),
        override_dataset=dataset,
        override_model=cast(HookedRootModule, boot_bridge(model_folder)),  # has all that it uses
    )
    trained = runner.run()
    with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch:
        for member in members:
            raw = Path(scratch) / member.name
            trained[member.name].save_inference_model(raw)
            _store(raw, target / member.folder)


def _store(raw: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = {name: tensor.half() for name, tensor in load_file(raw / FILES[1]).items()}
    save_file(weights, folder / FILES[1])
    (folder / FILES[1]).chmod(0o644)
    config: dict[str, Any] = json.loads((raw / FILES[0]).read_text())
    config |= {"dtype": "float32", "device": "cpu"}
    (folder / FILES[0]).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
