"""SAE-TS's effects, one text at a time, and its vectors, from the whole map."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import torch

from steerlens.config.prompts import PROMPTS
from steerlens.config.schema import GenerationConfig, SteerConfig
from steerlens.engine.generation import ROW, generate, unsteered_texts
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext
from steerlens.steering.methods import sae_ts
from steerlens.steering.methods.directions import Directions, text_scores
from tests.support.concepts import tiny_concepts, tiny_task

SMALL = sae_ts.Config(vectors=5, prompts=2, tokens=4)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm()


def naive_vector(
    x_ND: torch.Tensor, y_NF: torch.Tensor, feature: int, ridge: float, bias: float
) -> torch.Tensor:
    """The map itself, by the normal equations, D x F."""
    x_ND, y_NF = x_ND.double(), y_NF.double()
    x, y = x_ND - x_ND.mean(0), y_NF - y_NF.mean(0)
    M_DF = torch.linalg.inv(x.T @ x + ridge * torch.eye(x.shape[1])) @ x.T @ y
    b_F = y_NF.mean(0) - x_ND.mean(0) @ M_DF
    return unit(unit(M_DF[:, feature]) - bias * unit(M_DF @ b_F))


def naive_mean(subject: Subject, texts: pd.DataFrame) -> torch.Tensor:
    """Mean activations over all new tokens, a forward for each text."""
    parts = []
    for prompt, new in zip(texts["prompt"], texts["token_ids"], strict=True):
        ids = torch.cat([subject.to_tokens(prompt)[0].cpu(), torch.tensor(list(new))])
        _, cache = subject.lm.bridge.run_with_cache(ids[None])
        parts.append(subject.sae.encode(cache[subject.site.read][0][-len(new) :]))
    return torch.cat(parts).mean(0).detach()


@pytest.mark.parametrize(("n", "d"), [(40, 12), (8, 12)])
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_vectors_are_those_of_the_whole_map(n: int, d: int, bias: float) -> None:
    generator = torch.Generator().manual_seed(n)
    x_ND, y_NF = (torch.randn(n, size, generator=generator) + 0.3 for size in (d, 30))
    found_D = sae_ts.targeted(x_ND, y_NF, 7, 0.5, bias)
    expected_D = naive_vector(x_ND, y_NF, 7, 0.5, bias)
    torch.testing.assert_close(found_D, expected_D.float(), rtol=0, atol=1e-5)


def test_a_planted_map_is_found() -> None:
    generator = torch.Generator().manual_seed(1)
    M_DF, b_F = torch.randn(12, 30, generator=generator), torch.rand(30, generator=generator)
    x_ND = torch.randn(60, 12, generator=generator)
    found_D = sae_ts.targeted(x_ND, x_ND @ M_DF + b_F, 4, 1e-6, 1.0)
    expected_D = unit(unit(M_DF[:, 4]) - unit(M_DF @ b_F))
    torch.testing.assert_close(found_D, expected_D, rtol=0, atol=1e-4)


def test_effects_are_measured_on_texts(tiny_subject: Callable[..., Subject]) -> None:
    subject = tiny_subject("llama", "topk")
    task, features = tiny_task(subject), [3, 11, 40]
    found_NF = sae_ts.effects(task, features, SMALL, seed=2)
    ctx, prompts = RunContext(seed=2), list(PROMPTS[:2])
    settings = GenerationConfig(max_new_tokens=4, temperature=1.0, stop=None)
    steer = SteerConfig(unit="norm", positions="all")
    many = GenerationConfig(samples=16, max_new_tokens=4, temperature=1.0, stop=None)
    plain_F = naive_mean(subject, unsteered_texts(subject, prompts, many, ctx))
    for row, feature in enumerate(features):
        rows = [(feature, "", "", 0.5, prompt, 0) for prompt in prompts]
        texts = generate(subject, pd.DataFrame(rows, columns=pd.Index(ROW)), steer, settings, ctx)
        torch.testing.assert_close(
            found_NF[row], naive_mean(subject, texts) - plain_F, rtol=0, atol=1e-4
        )


def test_a_concept_has_its_features_length_and_activation_and_no_neighbours(
    tiny_subject: Callable[..., Subject],
) -> None:
    subject, concepts = tiny_subject("llama", "topk"), tiny_concepts()
    task = tiny_task(subject, concepts)
    found = sae_ts.fit(task, SMALL, 0)
    features_C = torch.tensor([5, 6, 7])  # those that the concepts name
    rows_CD = subject.sae.W_dec[features_C].detach()
    torch.testing.assert_close(found.vectors_CD.norm(dim=-1), rows_CD.norm(dim=-1))
    torch.testing.assert_close(
        text_scores(subject, found, task.vectors),
        text_scores(subject, Directions(rows_CD, features_C=features_C), task.vectors),
    )
    alone = tiny_task(subject, concepts.only(["concept 1"]))
    alone_D = sae_ts.fit(alone, SMALL, 0).vectors_CD[0]
    torch.testing.assert_close(alone_D, found.vectors_CD[1], rtol=0, atol=1e-4)


def test_what_it_cannot_do_is_refused(tiny_subject: Callable[..., Subject]) -> None:
    task = tiny_task(tiny_subject("gemma3", "temporal"))
    with pytest.raises(SteerlensError, match=r"SAE-TS can't read .*: its activations look back"):
        sae_ts.fit(task, SMALL, 0)
