"""Directions trained through the model, and features of the SAE: equal to naive loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from steerlens.config.registry import loadable_parts
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.steering.methods import reft_r1, sae_a, ssv
from tests.support.concepts import tiny_concepts, tiny_task
from tests.support.naive_training import naive_loss, naive_training

METHODS = loadable_parts("methods")

MakeSubject = Callable[..., Subject]


@pytest.mark.parametrize(
    ("kind", "site"),
    [("llama", "resid_post"), ("gemma2", "resid_post"), ("llama", "resid_pre"),
     ("neox", "resid_post"), ("llama", "attn_out")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["ReFT-r1", "SSV"])
def test_training_together_equals_a_plain_loop(
    tiny_subject: MakeSubject, kind: str, site: str, name: str
) -> None:
    task = tiny_task(tiny_subject(kind, site=site), tiny_concepts(2))
    config = METHODS[name].Config(epochs=2, batch_size=3, **({"top_k": 4} if name != "SSV" else {}))
    found_CD = METHODS[name].fit(task, config, seed=5).vectors_CD
    for concept in range(2):
        expected_D = naive_training(task, concept, config, seed=5)
        torch.testing.assert_close(found_CD[concept], expected_D, rtol=0, atol=2e-4)


def test_a_concept_alone_is_trained_as_with_others(tiny_subject: MakeSubject) -> None:
    subject, concepts = tiny_subject(), tiny_concepts(3)
    together = METHODS["ReFT-r1"].fit(tiny_task(subject, concepts), reft_r1.Config(), 0)
    for c, concept in enumerate(concepts.concepts):
        task = tiny_task(subject, concepts.only([concept.name]))
        alone = METHODS["ReFT-r1"].fit(task, reft_r1.Config(), 0)
        torch.testing.assert_close(alone.vectors_CD[0], together.vectors_CD[c], rtol=0, atol=2e-4)


def test_concepts_of_different_sizes_are_all_trained(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    small, large = tiny_concepts(2), tiny_concepts(2, n_texts=(4, 6))
    mixed = type(small)("mixed", (small.concepts[0], large.concepts[1]), False)
    found = ssv.fit(tiny_task(subject, mixed), ssv.Config(), 0).vectors_CD
    for place, concepts in enumerate((small, large)):
        expected = ssv.fit(tiny_task(subject, concepts), ssv.Config(), 0).vectors_CD[place]
        torch.testing.assert_close(found[place], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["ReFT-r1", "SSV"])
def test_a_trained_direction_makes_positives_more_likely(
    tiny_subject: MakeSubject, name: str
) -> None:
    task = tiny_task(tiny_subject(), tiny_concepts(1, n_texts=(12, 12)))
    settings = {} if name == "SSV" else {"latent_l1": 0.0}
    config = METHODS[name].Config(epochs=20, lr=0.05, **settings)
    v_D = METHODS[name].fit(task, config, 0).vectors_CD[0]
    texts = task.labelled.positives[0]
    amounts = (1.0,) if name == "SSV" else (0.5, 1.0, 2.0)
    plain = naive_loss(task, 0, texts, lambda x: x)
    best = min(naive_loss(task, 0, texts, lambda x, s=s: x + s * v_D) for s in amounts)
    assert best < plain - 0.05


def test_sae_a_takes_the_feature_with_the_best_auroc(tiny_subject: MakeSubject) -> None:
    task = tiny_task(tiny_subject("llama", "jumprelu"))
    found = sae_a.fit(task, sae_a.Config(), 0)
    assert found.features_C is not None
    subject, labelled = task.subject, task.labelled
    for concept, feature in enumerate(found.features_C.tolist()):
        texts = labelled.of(concept)
        acts_NF = torch.stack(
            [subject.sae.encode(task.vectors.whole(t)[1:][None])[0].amax(0) for t in texts]
        )
        label = [k < len(labelled.positives[concept]) for k in range(len(texts))]
        auroc_F = [roc_auc_score(label, acts_N) for acts_N in acts_NF.T.detach().numpy()]
        assert auroc_F[feature] == pytest.approx(max(auroc_F), abs=1e-9)
        mine_F = sae_a.auroc(acts_NF[: sum(label)], acts_NF[sum(label) :])
        assert mine_F.tolist() == pytest.approx(auroc_F, abs=1e-9)
    torch.testing.assert_close(found.vectors_CD, subject.sae.W_dec[found.features_C])


def test_sae_a_is_the_same_however_many_texts_are_kept(tiny_subject: MakeSubject) -> None:
    subject, concepts = tiny_subject("llama", "topk"), tiny_concepts(shared=True)
    whole = sae_a.fit(tiny_task(subject, concepts), sae_a.Config(), 0)
    little = replace(tiny_task(subject, concepts), memory_budget=1)
    few = sae_a.fit(little, sae_a.Config(), 0)
    assert whole.features_C is not None
    assert few.features_C is not None
    assert torch.equal(few.features_C, whole.features_C)


def test_sae_a_refuses_an_sae_that_looks_back(tiny_subject: MakeSubject) -> None:
    task = tiny_task(tiny_subject("gemma3", "temporal"))
    with pytest.raises(SteerlensError, match=r"SAE-A can't read .*: its activations look back"):
        sae_a.fit(task, sae_a.Config(), 0)


def test_sae_takes_the_concepts_own_feature_or_says_what_is_wrong(
    tiny_subject: MakeSubject,
) -> None:
    subject = tiny_subject()
    found = METHODS["SAE"].fit(tiny_task(subject), METHODS["SAE"].Config(), 0)
    assert found.features_C is not None
    assert found.features_C.tolist() == [5, 6, 7]
    with pytest.raises(SteerlensError, match=r"names feature 7 of layer 2 .*0 to 6"):
        tiny_concepts().check_features(2, 7, "small")
