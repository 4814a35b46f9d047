"""CorrSteer's feature and coefficient, against plain loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext
from steerlens.steering.methods import corrsteer
from steerlens.steering.methods.fitting import fit_concepts
from tests.support.concepts import tiny_concepts, tiny_task


def test_the_best_correlated_feature_is_added_as_much_as_successes_have(
    tiny_subject: Callable[..., Subject],
) -> None:
    subject, concepts = tiny_subject("llama", "jumprelu"), tiny_concepts()
    task = tiny_task(subject, concepts)
    fitted = fit_concepts(subject, concepts, {"CorrSteer": corrsteer.Config()}, RunContext())
    found = fitted["CorrSteer"].directions
    assert found.features_C is not None
    for concept, feature in enumerate(found.features_C.tolist()):
        texts, n = task.labelled.of(concept), len(task.labelled.positives[concept])
        largest_NF = np.stack(
            [
                subject.sae.encode(task.vectors.whole(text)[task.labelled.texts[text].n_prompt :])
                .amax(0)
                .detach()
                .numpy()
                for text in texts
            ]
        )
        outcome = [float(k < n) for k in range(len(texts))]
        expected = [
            np.corrcoef(z, outcome)[0, 1] if np.ptp(z) else -1 for z in largest_NF.T.astype(float)
        ]
        assert expected[feature] == pytest.approx(max(expected), abs=1e-9)
        mine = corrsteer.correlations(torch.from_numpy(largest_NF), torch.tensor(outcome) > 0)
        assert mine.tolist() == pytest.approx(expected, abs=1e-9)
        scale = fitted["CorrSteer"].scale_C[concept]
        assert scale == pytest.approx(largest_NF[:n, feature].mean(), rel=1e-5)


def test_a_concept_with_which_no_feature_goes_is_refused(
    tiny_subject: Callable[..., Subject],
) -> None:
    concepts = tiny_concepts(1)
    same = replace(concepts.concepts[0], negatives=concepts.concepts[0].positives)
    task = tiny_task(tiny_subject(), replace(concepts, concepts=(same,)))
    with pytest.raises(SteerlensError, match=r"CorrSteer: no feature .* concept 'concept 0'"):
        corrsteer.fit(task, corrsteer.Config(), 0)
