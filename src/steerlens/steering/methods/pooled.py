"""The largest activation of every feature in each text of a concept.

A text that several concepts share is read once, as far as memory goes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from steerlens.steering.methods.directions import largest_activations
from steerlens.steering.methods.labelled import TokenVectors
from steerlens.steering.methods.task import Task

FEATURES_AT_ONCE = 4096
"""Features whose activations are sorted or counted together."""


@torch.no_grad()
def pooled_latents(
    task: Task, method: str, vectors: TokenVectors | None = None
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield for each concept the largest activations in its texts, positives first, as (N, F), and
    how many are positives.

    Args:
        task: the concepts and their texts.
        method: what a refusal names.
        vectors: what counts of the texts; None = all but their prefixes.

    Raises:
        SteerlensError: for an SAE whose activations depend on the positions before.
    """
    subject, labelled = task.subject, task.labelled
    task.refuse_looking_back(method)
    activations_of_text: dict[int, torch.Tensor] = {}  # by text: many concepts have the same
    most = max(1, task.memory_budget // (4 * subject.d_sae))
    for concept, positives in enumerate(labelled.positives):
        texts = labelled.of(concept)
        missing = [text for text in texts if text not in activations_of_text]
        if len(activations_of_text) + len(missing) > most:
            activations_of_text = {
                text: activations_of_text[text] for text in texts if text in activations_of_text
            }
        activations_of_text |= zip(
            missing,
            largest_activations(subject, task.vectors if vectors is None else vectors, missing),
            strict=True,
        )
        yield torch.stack([activations_of_text[text] for text in texts]), len(positives)
