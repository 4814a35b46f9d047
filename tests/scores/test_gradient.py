"""The gradient score against autograd through SAELens' own decode, one text a forward."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerlens import SteerlensError, score_features
from steerlens.engine.corpus_pass import activations_of, read_corpus
from steerlens.engine.gradients import greedy_attribution
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.scores import gradient
from tests.support.naive_scores import naive_attribution
from tests.support.tiny import D_SAE

MakeSubject = Callable[..., Subject]
PROBES = range(0, D_SAE, 5)


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Any]:
    draw = random.Random(0)
    lines = [
        " ".join(f"w{draw.randrange(12, 211)}" for _ in range(draw.randrange(4, 16)))
        for _ in range(12)
    ]
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(lines))
    return {"name": "text", "path": str(file)}


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize(
    ("kind", "architecture", "settings"),
    [
        ("llama", "standard", {"normalize_activations": "layer_norm"}),
        ("gemma2", "topk", {"site": "resid_pre"}),
        ("gpt2", "topk", {"site": "attn.hook_z"}),
        ("neox", "jumprelu", {"site": "mlp_out"}),
    ],
)
def test_one_backward_pass_gives_what_autograd_gives_through_the_sae(
    tiny_subject: MakeSubject, kind: str, architecture: str, settings: dict[str, Any], every: bool
) -> None:
    subject = tiny_subject(kind, architecture, **settings)
    tokens_L = np.array([0, 20, 31, 4, 77, 140, 31, 5])
    acts, grad = naive_attribution(subject, tokens_L, every)
    ours = greedy_attribution(subject, tokens_L, torch.arange(D_SAE), every)
    torch.testing.assert_close(ours.acts_Ln, acts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.gradient_Ln, grad, rtol=1e-3, atol=1e-5)
    assert float(grad.abs().max()) > 1e-3


@pytest.mark.parametrize("outputs", ["last", "every"])
def test_the_score_is_the_mean_over_the_positions_where_the_feature_fires(
    tiny_subject: MakeSubject, corpus: dict[str, Any], outputs: str
) -> None:
    from steerlens.config.compose import compose
    from steerlens.config.overrides import override

    subject = tiny_subject("llama", "topk")
    words = [f"corpus={corpus['name']}", override("corpus.path", corpus["path"])]
    ctx = RunContext(corpus=compose(words).corpus)
    config = gradient.Config(source="corpus", outputs=outputs, max_examples=4, context_length=12)
    read_corpus([subject], [config], ctx)
    activations = activations_of(subject, 12, ctx)
    scores = score_features(
        subject, "gradient", PROBES, corpus=corpus,
        source="corpus", outputs=outputs, max_examples=4, context_length=12,
    )["gradient"].to_numpy(float)  # fmt: skip
    expected = []
    for feature in PROBES:
        products, texts = [], 0
        for value, piece in zip(
            activations.value_FN[feature, :4], activations.piece_FN[feature, :4], strict=True
        ):
            if value <= 0:
                continue
            acts, grad = naive_attribution(subject, activations.pieces[piece], outputs == "every")
            fires = acts[1:, feature] > 0  # BOS doesn't count
            products += (acts[1:, feature] * grad[1:, feature])[fires].tolist()
            texts += bool(fires.any())
        expected.append(np.mean(products) if texts >= 3 else np.nan)
    assert np.isfinite(expected).sum() > 2
    np.testing.assert_allclose(scores, expected, rtol=2e-3, atol=1e-6)


def test_a_feature_that_fires_in_fewer_texts_than_asked_has_no_score(
    tiny_subject: MakeSubject, corpus: dict[str, Any]
) -> None:
    subject = tiny_subject("llama", "topk", k=1)
    frame = score_features(subject, "gradient", corpus=corpus, source="corpus")
    fires = score_features(subject, "input", corpus=corpus, source="corpus", min_examples=1)
    few = fires["input_examples"].to_numpy() < 3
    assert 0 < few.sum() < D_SAE
    assert (frame["gradient"].isna().to_numpy() == few).all()


def test_what_features_share_a_block_changes_no_score(
    tiny_subject: MakeSubject, corpus: dict[str, Any]
) -> None:
    subject = tiny_subject("llama", "topk")
    every = score_features(subject, "gradient", corpus=corpus)["gradient"].to_numpy(float)
    few = score_features(subject, "gradient", [40, 3], corpus=corpus)["gradient"].to_numpy(float)
    np.testing.assert_array_equal(few, every[[40, 3]])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"outputs": "first"}, "unknown outputs of score gradient 'first'"),
        ({"max_examples": 2}, "max_examples=2 of score gradient is less than min_examples=3"),
        ({"source": "shipped", "path": "x", "max_examples": 6}, "more than the 5 texts that ship"),
        ({"source": "neuronpedia"}, "unknown source of score gradient"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        gradient.Config(**settings).check()
