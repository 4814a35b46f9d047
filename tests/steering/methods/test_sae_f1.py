"""SAE-F1's feature, against every threshold in a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext, output
from steerlens.steering.methods import sae_f1
from tests.support.concepts import tiny_concepts, tiny_task


def naive_f1(acts: np.ndarray, positive: np.ndarray, learnt: np.ndarray) -> float:
    """The F1 of one feature on the texts that its threshold wasn't learnt from."""
    best, threshold = 0.0, None
    for candidate in sorted({*acts[learnt][acts[learnt] > 0].tolist()}, reverse=True):
        value = f1_score(positive[learnt], acts[learnt] >= candidate)
        if value > best:
            best, threshold = value, candidate
    if threshold is None:
        return 0.0
    none: Any = 0.0
    return float(f1_score(positive[~learnt], acts[~learnt] >= threshold, zero_division=none))


def test_the_best_f1_among_features_that_steer(tiny_subject: Callable[..., Subject]) -> None:
    subject = tiny_subject("llama", "jumprelu")
    task = tiny_task(subject, tiny_concepts(n_texts=(9, 7)))
    settings = output.OutputScoreConfig(null_directions=0)
    s_out = output.score(subject, np.arange(subject.d_sae), settings, RunContext())["output_score"]
    s_out_F = np.asarray(s_out)
    least = float(np.median(s_out_F))
    found = sae_f1.fit(task, sae_f1.Config(min_output_score=least), 0)
    assert found.features_C is not None
    for concept, feature in enumerate(found.features_C.tolist()):
        texts, n = task.labelled.of(concept), len(task.labelled.positives[concept])
        acts_NF = np.stack(
            [
                subject.sae.encode(task.vectors.whole(text)[1:]).amax(0).detach().numpy()
                for text in texts
            ]
        )
        positive = np.arange(len(texts)) < n
        learnt = np.array([k % 2 == 0 for k in range(n)] + [k % 2 == 0 for k in range(7)])
        expected = [naive_f1(acts, positive, learnt) for acts in acts_NF.T]
        allowed = np.flatnonzero(s_out_F >= least)
        assert feature == max(allowed, key=lambda f: (expected[f], -f))


@pytest.mark.parametrize(
    ("n_texts", "least", "told"),
    [((7, 5), 1.0, r"reaches the output score 1; lower concepts\.settings\.SAE-F1"),
     ((7, 1), 0.0, r"SAE-F1 needs two texts of the concept 'concept 0' and two without")],
)  # fmt: skip
def test_what_cannot_be_chosen_is_refused(
    tiny_subject: Callable[..., Subject], n_texts: tuple[int, int], least: float, told: str
) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(1, n_texts))
    with pytest.raises(SteerlensError, match=told):
        sae_f1.fit(task, sae_f1.Config(min_output_score=least), 0)
