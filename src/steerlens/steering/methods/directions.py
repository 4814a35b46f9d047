"""What supervised methods find: a direction for each concept, how strongly texts have it, and how
rows are steered with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from steerlens.engine.activations.stream import TOKENS_ON_CPU
from steerlens.engine.intervention import Targets, feature_targets, looks_back
from steerlens.steering.methods.labelled import Labelled, TokenVectors

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

DEFAULT_MAX_ACTIVATION = 50.0
"""For a concept whose largest score isn't positive (AxBench)."""


@dataclass(frozen=True)
class Latents:
    """K features of the SAE for each of C concepts, of different weight."""

    ids_CK: torch.Tensor
    weights_CK: torch.Tensor
    """float32; 0 for what only fills the row."""


@dataclass(frozen=True)
class Directions:
    """One direction for each of C concepts.

    A token with vector `x` has the score `x @ v`, at least 0 where `rectified`; a feature of the
    SAE has its activation, and `latents` the weighted sum of theirs. A text has the largest score
    of its tokens (AxBench).
    """

    vectors_CD: torch.Tensor
    """(C, D) float32, what is added."""
    rectified: bool = False
    features_C: torch.Tensor | None = None
    """(C,) the SAE's features, if that is what the directions are."""
    latents: Latents | None = None
    """The SAE's features whose activations detect the concepts, where the directions aren't one
    of them each."""
    scale_C: torch.Tensor | None = None
    """(C,) how much of the direction the factor 1 adds, where the method says so; None = as much
    as the largest score of the concept's texts to test on (AxBench)."""

    def __len__(self) -> int:
        return len(self.vectors_CD)


def joined(parts: Sequence[Directions]) -> Directions:
    """Return the directions of several groups of concepts, found by one method."""
    features = [part.features_C for part in parts if part.features_C is not None]
    latents = [part.latents for part in parts if part.latents is not None]
    scales = [part.scale_C for part in parts if part.scale_C is not None]
    return replace(
        parts[0],
        vectors_CD=torch.cat([part.vectors_CD for part in parts]),
        features_C=torch.cat(features) if features else None,
        latents=Latents(
            torch.cat([part.ids_CK for part in latents]),
            torch.cat([part.weights_CK for part in latents]),
        )
        if latents
        else None,
        scale_C=torch.cat(scales) if scales else None,
    )


def unit(vectors_CD: torch.Tensor) -> torch.Tensor:
    """Return rows of length 1; a row of zeros stays."""
    length_C1 = vectors_CD.norm(dim=-1, keepdim=True)
    return vectors_CD / length_C1.clamp(min=torch.finfo(vectors_CD.dtype).tiny)


@torch.no_grad()
def text_scores(subject: Subject, directions: Directions, vectors: TokenVectors) -> torch.Tensor:
    """Return, as (N, C), the score of each text for each concept, the largest of its tokens'."""
    texts = range(len(vectors))
    if directions.features_C is not None:
        return largest_activations(subject, vectors, texts, directions.features_C).float()
    if directions.latents is not None:
        ids_CK, weights_CK = directions.latents.ids_CK.cpu(), directions.latents.weights_CK.cpu()
        ids_U, index_CK = torch.unique(ids_CK, return_inverse=True)
        weights_CU = torch.zeros(len(ids_CK), len(ids_U)).scatter_add(1, index_CK, weights_CK)
        return largest_activations(subject, vectors, texts, ids_U, weights_CU.T).float()
    v_CD = directions.vectors_CD.to(vectors.x_TD)
    scores = [(vectors.of([text]) @ v_CD.T).amax(dim=0) for text in texts]
    scores_NC = torch.stack(scores)
    return scores_NC.clamp(min=0) if directions.rectified else scores_NC


@torch.no_grad()
def largest_activations(
    subject: Subject,
    vectors: TokenVectors,
    texts: Sequence[int],
    features: torch.Tensor | None = None,
    weights_FC: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return, as (N, F), of each text, the largest activation of every feature, or of
    `features`; with weights, as (N, C), that of weighted sums of them.
    """
    W_dec = subject.sae.W_dec
    parts: list[torch.Tensor] = []
    one_by_one = looks_back(subject.sae)
    for batch in ([text] for text in texts) if one_by_one else _batches(vectors, texts):
        x_1TD = vectors.of(batch)[None].to(W_dec)
        acts_TF = subject.sae.encode(x_1TD)[0]
        if features is not None:
            acts_TF = acts_TF[:, features.to(acts_TF.device)]
        if weights_FC is not None:
            acts_TF = acts_TF @ weights_FC.to(acts_TF)
        lengths = vectors.length_N[batch].long().to(acts_TF.device)
        parts.append(torch.segment_reduce(acts_TF.contiguous(), "max", lengths=lengths, axis=0))
    if not parts:
        width = subject.d_sae if features is None else len(features)
        return W_dec.new_empty(0, width if weights_FC is None else weights_FC.shape[1])
    return torch.cat(parts)


def _batches(vectors: TokenVectors, texts: Sequence[int]) -> Iterator[list[int]]:
    """Yield texts of about `TOKENS_ON_CPU` tokens together."""
    batch: list[int] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += vectors.starts[text + 1] - vectors.starts[text]
        if size >= TOKENS_ON_CPU:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


TIE = 1e-4
"""Scores that differ by less, relative to the concept's largest, count as ties: texts that begin
alike differ by rounding alone. AxBench rounds to three decimals."""


@dataclass(frozen=True)
class Detection:
    """How well the scores of C concepts tell their texts apart."""

    auroc_C: list[float | None]
    """Area under the ROC curve of positives against negatives; None without both."""
    max_activation_C: list[float]
    """The largest score of the concept's texts, by which AxBench scales what is added."""


def detect(scores_NC: torch.Tensor, labelled: Labelled) -> Detection:
    """Return detection of each concept on its own texts of `labelled` (AxBench)."""
    from sklearn.metrics import roc_auc_score

    scores = scores_NC.cpu().double().numpy()
    auroc: list[float | None] = []
    largest: list[float] = []
    for concept in range(len(labelled)):
        of_concept = scores[labelled.of(concept), concept]
        n = len(labelled.positives[concept])
        is_positive = [index < n for index in range(len(of_concept))]
        both = any(is_positive) and not all(is_positive)
        grid = TIE * max(abs(of_concept).max(initial=0.0), 1e-12)
        rounded = (of_concept / grid).round()
        auroc.append(float(roc_auc_score(is_positive, rounded)) if both else None)
        top = float(of_concept.max()) if len(of_concept) else 0.0
        largest.append(top if top > 0 else DEFAULT_MAX_ACTIVATION)
    return Detection(auroc, largest)


def direction_targets(
    subject: Subject,
    directions: Directions,
    concept_B: Sequence[int],
    factor_B: Sequence[float],
    max_activation_C: Sequence[float] | None = None,
) -> Targets:
    """Return rows that steer with one concept's direction each.

    With steer.unit=max_activation and steer.positions=all this is AxBench's addition:
    `factor * max_activation * v` at every position.
    """
    concepts = torch.as_tensor(concept_B)
    largest = None if max_activation_C is None else torch.as_tensor(max_activation_C)[concepts]
    factors = torch.as_tensor(factor_B, dtype=torch.float64)
    if directions.features_C is not None:
        features_B1 = directions.features_C.cpu()[concepts][:, None]
        return feature_targets(
            subject.sae,
            features_B1,
            factors,
            max_activation_BN=None if largest is None else largest[:, None],
        )
    like = subject.sae.W_dec
    vectors_BD = directions.vectors_CD.to(like)[concepts.to(like.device)]
    return Targets(
        vectors_BND=vectors_BD[:, None],
        factor_B=factors.to(like),
        weights_BN=vectors_BD.new_ones(len(concepts), 1),
        max_activation_BN=None if largest is None else largest[:, None].to(like),
    )
