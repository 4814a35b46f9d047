"""SAELogits: features that fire on a concept, weighted by how they promote its tokens.

After AxBench's pull request 146. Features that tell the concept's tokens from others by how often
and how strongly they fire are candidates. In the original a language model then looks at the
tokens that each promotes; here the concept's own tokens do: those that more of its texts have
than others. A candidate's weight is its mean activation where it fires on the concept, times the
mean logit of these tokens in its logit lens. Nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steerlens.engine.intervention import decoder_rows
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.steering.methods.directions import Directions, Latents, unit
from steerlens.steering.methods.task import Task

NAME = "SAELogits"

FREQUENCY_POWERS = (0.05, 20.0)
"""How much it counts for a candidate that it fires often: hardly, or more than all else."""


@dataclass
class SaeLogitsConfig:
    """The original's numbers, where it has them."""

    latents: int = 5
    """Features that are added at once, at most."""
    candidates: int = 50
    """Features that are looked at, by each of two rankings."""
    min_active: int = 3
    """Tokens of the concept's texts in which a feature has to fire."""
    tokens: int = 20
    """Tokens that stand for the concept."""


Config = SaeLogitsConfig


@torch.no_grad()
def fit(task: Task, config: SaeLogitsConfig, seed: int) -> Directions:
    """Return weighted sums of decoder rows, as long as the weighted mean of their lengths. A
    token's score is the weighted sum of the features' activations.

    Raises:
        SteerlensError: for an SAE whose activations depend on the positions before, or a concept
            for which no feature fires.
    """
    subject = task.subject
    task.refuse_looking_back(NAME)
    ids, weights = [], []
    for concept in range(len(task)):
        ids_K, weights_K = _weighted(task, concept, config)
        filler = (0, config.latents - len(ids_K))
        ids.append(torch.nn.functional.pad(ids_K, filler))
        weights.append(torch.nn.functional.pad(weights_K, filler))
    latents = Latents(torch.stack(ids), torch.stack(weights))
    rows_CKD = decoder_rows(subject.sae, latents.ids_CK).float()
    weights_CK = latents.weights_CK.to(rows_CKD.device)
    length_C = (weights_CK * rows_CKD.norm(dim=-1)).sum(dim=-1)
    vectors_CD = unit((weights_CK[..., None] * rows_CKD).sum(dim=1)) * length_C[:, None]
    return Directions(vectors_CD, latents=latents)


def _weighted(
    task: Task, concept: int, config: SaeLogitsConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a concept's features and their weights, which add up to 1."""
    labelled = task.labelled
    sides = (labelled.positives[concept], labelled.negatives[concept])
    of_concept, of_others = (_firing(task, texts) for texts in sides)
    candidates_n = ranked(of_concept, of_others, config)
    if not len(candidates_n):
        raise SteerlensError(
            f"{NAME}: no feature of {task.subject.name} fires on {config.min_active} tokens of the "
            f"concept {task.concepts[concept].name!r} and more strongly than on others; lower "
            f"concepts.settings.{NAME}.min_active."
        )
    tokens_K = concept_tokens(task, concept, config.tokens)
    relevance_n = _relevance(task.subject, candidates_n, tokens_K, task.memory_budget)
    order_n = relevance_n.argsort(descending=True, stable=True)[: config.latents]
    # One feature at least, even if it doesn't promote the tokens.
    order_n = order_n[: max(1, int((relevance_n[order_n] > 0).sum()))]
    ids_K = candidates_n[order_n]
    weights_K = relevance_n[order_n].clamp(min=0) * of_concept.mean_if_firing_F[ids_K]
    if not weights_K.sum() > 0:
        weights_K = torch.ones_like(weights_K)
    return ids_K, (weights_K / weights_K.sum()).float()


@dataclass(frozen=True)
class Firing:
    """How features fire on the tokens of some texts: (F,) each, float64 on the CPU."""

    n_F: torch.Tensor
    """On how many tokens."""
    share_F: torch.Tensor
    """On which share of them."""
    mean_F: torch.Tensor
    mean_if_firing_F: torch.Tensor
    """Mean activation of the tokens on which they fire; 0 where they don't."""


def _firing(task: Task, texts: list[int]) -> Firing:
    sae = task.subject.sae
    n_F = torch.zeros(task.subject.d_sae, dtype=torch.float64)
    sum_F = torch.zeros_like(n_F)
    x_TD = task.vectors.of(texts)

    def count(rows: slice, _full: int) -> None:
        acts_TF = sae.encode(x_TD[rows].to(sae.W_dec))
        n_F.add_((acts_TF > 0).sum(dim=0).cpu())
        sum_F.add_(acts_TF.clamp(min=0).double().sum(dim=0).cpu())

    size = rows_that_fit(task.memory_budget, 24 * task.subject.d_sae, 1024)
    for _ in batches(len(x_TD), size, count):
        pass
    return Firing(n_F, n_F / len(x_TD), sum_F / len(x_TD), sum_F / n_F.clamp(min=1))


def ranked(of_concept: Firing, of_others: Firing, config: SaeLogitsConfig) -> torch.Tensor:
    """Return, as (n,), the best features by each ranking: `(1 - mean on others / mean on the
    concept) * share ** power`, of those that fire more strongly on the concept where they fire.
    """
    fires_F = (of_concept.mean_if_firing_F > of_others.mean_if_firing_F) & (
        of_concept.n_F >= config.min_active
    )
    ids_n = fires_F.nonzero()[:, 0]
    gap_n = 1 - of_others.mean_F[ids_n] / of_concept.mean_F[ids_n]
    best = [
        (gap_n * of_concept.share_F[ids_n] ** power).argsort(descending=True, stable=True)
        for power in FREQUENCY_POWERS
    ]
    return ids_n[torch.cat([order_n[: config.candidates] for order_n in best]).unique()]


def concept_tokens(task: Task, concept: int, k: int) -> torch.Tensor:
    """Return, as (k,) or fewer, the tokens that more of the concept's texts have than of others, by
    how far that is from chance: the difference of both shares in its standard errors.
    """
    labelled = task.labelled
    d_vocab = task.subject.lm.head.d_vocab
    shares, sizes = [], []
    for texts in (labelled.positives[concept], labelled.negatives[concept]):
        n_texts_V = torch.zeros(d_vocab, dtype=torch.float64)
        for text in texts:
            tokens = labelled.texts[text]
            n_texts_V[torch.tensor(tokens.ids[tokens.n_prompt :]).unique()] += 1
        shares.append(n_texts_V / len(texts))
        sizes.append(len(texts))
    both_V = (shares[0] * sizes[0] + shares[1] * sizes[1]) / sum(sizes)
    error_V = (both_V * (1 - both_V) * sum(1 / size for size in sizes)).sqrt()
    z_V = (shares[0] - shares[1]) / error_V.clamp(min=1e-12)
    order_V = z_V.argsort(descending=True, stable=True)[:k]
    return order_V[z_V[order_V] > 0]


def _relevance(
    subject: Subject, ids_n: torch.Tensor, tokens_K: torch.Tensor, memory_budget: int
) -> torch.Tensor:
    """Return, as (n,) float64, the mean logit of some tokens in each feature's logit lens, less
    that of all tokens; 0 without tokens.
    """
    head = subject.lm.head
    relevance_n = torch.zeros(len(ids_n), dtype=torch.float64)
    if not len(tokens_K):
        return relevance_n

    def read(rows: slice, _full: int) -> None:
        rows_BD = subject.in_residual_stream(subject.sae.W_dec[ids_n[rows]])
        logits_BV = head.logits(head.norm(rows_BD.to(head.device))).float()
        of_tokens_B = logits_BV[:, tokens_K.to(logits_BV.device)].mean(dim=-1)
        relevance_n[rows] = (of_tokens_B - logits_BV.mean(dim=-1)).double().cpu()

    for _ in batches(len(ids_n), rows_that_fit(memory_budget, 16 * head.d_vocab, 1024), read):
        pass
    return relevance_n
