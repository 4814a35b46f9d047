"""SAE-TS: the vector after which texts have the concept's feature, and little else.

SAE-targeted steering (arXiv 2411.02193). What steering does is measured: some features are steered
with, one after the other, the texts are read again by the model as it is, and the mean activation
of every feature in them is compared with unsteered texts. A linear map `y = x M + b` from the
vector to these effects is fitted. A concept's vector is `M_j / |M_j| - M b / |M b|`, j its feature:
what brings the feature, less what brings all that steering brings.

The original measures tens of thousands of vectors and fits by gradient descent. Here a few hundred
rows of the decoder are measured, which all concepts share, beside the concept's own; the fit is
the exact ridge regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from steerlens.config.prompts import PROMPTS
from steerlens.config.schema import GenerationConfig, SteerConfig
from steerlens.engine.generation import ROW, generate, unsteered_texts
from steerlens.engine.generation.sampling import row_seed
from steerlens.engine.intervention import decoder_rows
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.steering.methods import sae_a
from steerlens.steering.methods.directions import Directions, Latents, unit
from steerlens.steering.methods.labelled import Tokens, token_vectors
from steerlens.steering.methods.task import Task
from steerlens.steering.methods.training import Budget

NAME = "SAE-TS"

BASELINE = 16
"""Unsteered texts of each prompt."""

READ_AT_ONCE = 256
"""Texts whose vectors are in memory together."""


@dataclass
class SaeTsConfig:
    """A budget for a CPU: texts of 256 vectors instead of 50,000."""

    vectors: int = 256
    """Features that are steered with to learn what steering does."""
    prompts: int = field(default=4, metadata={"most": len(PROMPTS)})
    """Prompts that each is steered on."""
    tokens: int = 16
    """Tokens of each text."""
    dose: float = 0.5
    """Length of what is added, relative to the vector that it is added to."""
    ridge: float = 1.0
    """Penalty of the map, in squared lengths of one vector."""
    bias: float = 1.0
    """How much of what all steering brings is taken away."""


Config = SaeTsConfig


def budget(config: SaeTsConfig, n_positives: int, n_negatives: int) -> Budget:
    """Return what training takes; see `methods`."""
    return Budget(vectors=config.vectors)


@torch.no_grad()
def fit(task: Task, config: SaeTsConfig, seed: int) -> Directions:
    """Return the vectors, each as long as the decoder row of its concept's feature: the one that
    the concept names, else SAE-A's. The feature's activation detects the concept.

    Raises:
        SteerlensError: for an SAE whose activations depend on the positions before, or one that
            writes elsewhere than it reads.
    """
    subject = task.subject
    task.refuse_looking_back(NAME)
    features_C = _features(task, seed)
    draw = np.random.Generator(np.random.Philox(row_seed(NAME, seed)))
    n_vectors = min(config.vectors, subject.d_sae)
    shared = draw.choice(subject.d_sae, n_vectors, replace=False).tolist()
    every = sorted({*shared, *features_C.tolist()})
    row_of = {feature: row for row, feature in enumerate(every)}
    effects_NF = effects(task, every, config, seed)
    rows_ND = decoder_rows(subject.sae, torch.tensor(every)).float()
    vectors = []
    for feature in features_C.tolist():
        rows = torch.tensor([row_of[name] for name in sorted({*shared, feature})])
        vectors.append(
            targeted(unit(rows_ND[rows]), effects_NF[rows], feature, config.ridge, config.bias)
            * rows_ND[row_of[feature]].norm()
        )
    latents = Latents(features_C[:, None], torch.ones(len(features_C), 1))
    return Directions(torch.stack(vectors), latents=latents)


def _features(task: Task, seed: int) -> torch.Tensor:
    """Return, as (C,), the feature of each concept."""
    subject = task.subject
    if all(concept.feature is not None for concept in task.concepts):
        best_C = torch.zeros(len(task), dtype=torch.int64)
    else:
        fitted = sae_a.fit(task, sae_a.Config(), seed)
        assert fitted.features_C is not None
        best_C = fitted.features_C
    for index, concept in enumerate(task.concepts):
        if concept.feature is not None:
            concept.check_feature(subject.layer, subject.d_sae, subject.name)
            best_C[index] = concept.feature.feature
    return best_C


def effects(task: Task, features: Sequence[int], config: SaeTsConfig, seed: int) -> torch.Tensor:
    """Return, as (N, F) float32, by how much the mean activation of each of the SAE's features is
    higher in texts that are steered with one of the N features than in unsteered ones.
    """
    subject = task.subject
    ctx = replace(task.ctx, seed=seed)
    prompts = list(PROMPTS[: config.prompts])
    settings = GenerationConfig(
        samples=1, max_new_tokens=config.tokens, temperature=1.0, stop=None, batch_size=None
    )
    plain = unsteered_texts(subject, prompts, replace(settings, samples=BASELINE), ctx)
    plain_1F = _mean_activations(task, plain.assign(vector=0), 1)
    rows = [(feature, "", "", config.dose, prompt, 0) for feature in features for prompt in prompts]
    steer = SteerConfig(operator="add", unit="norm", positions="all")
    texts = generate(subject, pd.DataFrame(rows, columns=pd.Index(ROW)), steer, settings, ctx)
    vector_N = np.repeat(np.arange(len(features)), len(prompts))
    return _mean_activations(task, texts.assign(vector=vector_N), len(features)) - plain_1F


def _mean_activations(task: Task, texts: pd.DataFrame, n_vectors: int) -> torch.Tensor:
    """Return, as (N, F), the mean over the new tokens of the texts of each of N vectors."""
    subject = task.subject
    sae = subject.sae
    sum_NF = torch.zeros(n_vectors, subject.d_sae)
    n_tokens_N = torch.zeros(n_vectors)
    prompt_ids = {
        prompt: subject.to_tokens(prompt)[0].tolist() for prompt in dict.fromkeys(texts["prompt"])
    }
    for start in range(0, len(texts), READ_AT_ONCE):
        part = texts.iloc[start : start + READ_AT_ONCE]
        read = []
        for prompt, new in zip(part["prompt"], part["token_ids"], strict=True):
            before = prompt_ids[prompt]
            read.append(Tokens([*before, *new], len(before), len(before)))
        vectors = token_vectors(subject, read, task.memory_budget)
        x_TD = vectors.of(range(len(read)))
        vector_T = torch.from_numpy(
            np.repeat(part["vector"].to_numpy(), [len(new) for new in part["token_ids"]])
        )

        def add(rows: slice, _full: int, x_TD=x_TD, vector_T=vector_T) -> None:
            acts_TF = sae.encode(x_TD[rows].to(sae.W_dec)).float().cpu()
            sum_NF.index_add_(0, vector_T[rows], acts_TF)

        size = rows_that_fit(task.memory_budget, 24 * subject.d_sae, 1024)
        for _ in batches(len(x_TD), size, add):
            pass
        n_tokens_N += torch.bincount(vector_T, minlength=n_vectors)
    return sum_NF / n_tokens_N[:, None]


def targeted(
    x_ND: torch.Tensor, effects_NF: torch.Tensor, feature: int, ridge: float, bias: float
) -> torch.Tensor:
    """Return, as (D,), the unit vector toward one feature by the ridge regression of effects on
    vectors, whose constant isn't penalised.

    Args:
        x_ND: N vectors.
        effects_NF: what each does to F features.
        feature: the one that is wanted.
        ridge: penalty of the map's squared entries.
        bias: how much of `M b / |M b|` is subtracted.
    """
    x_ND, effects_NF = x_ND.double().cpu(), effects_NF.double().cpu()
    mean_D, mean_F = x_ND.mean(dim=0), effects_NF.mean(dim=0)
    x_ND, effects_NF = x_ND - mean_D, effects_NF - mean_F
    gram_NN = x_ND @ x_ND.T + ridge * torch.eye(len(x_ND), dtype=x_ND.dtype)
    # M is `inverse_ND.T @ effects_NF`: D x F is never in memory.
    inverse_ND = torch.linalg.lstsq(gram_NN, x_ND, driver="gelsd").solution
    b_F = mean_F - (inverse_ND @ mean_D) @ effects_NF
    toward_D = unit(inverse_ND.T @ effects_NF[:, feature])
    always_D = unit(inverse_ND.T @ (effects_NF @ b_F))
    return unit(toward_D - bias * always_D).float()
