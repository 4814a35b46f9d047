"""Input scores and activation statistics against one forward per sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerlens import SteerlensError, score_features
from steerlens.engine.subject import Subject
from tests.support.naive import naive_logit_lens
from tests.support.tiny import D_SAE, WORDS

MakeSubject = Callable[..., Subject]


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, Any]:
    """Lines of 1 to 40 words of the tiny vocabulary, some of them empty."""
    draw = np.random.default_rng(0)
    words = [*(word for word in WORDS if word.isalpha()), *(f"w{i}" for i in range(20, 60))]
    lines = [" ".join(draw.choice(words, draw.integers(1, 41))) for _ in range(40)]
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join([*lines[:20], "", *lines[20:]]), encoding="utf-8")
    return {"name": "text", "path": str(file)}


@torch.no_grad()
def naive(subject: Subject, corpus: dict[str, Any], length: int, n: int, k: int) -> pd.DataFrame:
    """Every sentence alone through the whole model, every feature by itself."""
    bridge, sae = subject.lm.bridge, subject.sae
    bos = [0] if subject.prepend_bos else []
    sentences: list[list[int]] = []
    for line in Path(corpus["path"]).read_text().splitlines():
        ids = subject.lm.tokenizer(line, add_special_tokens=False)["input_ids"]
        size = length - len(bos)
        sentences += [bos + ids[i : i + size] for i in range(0, len(ids), size)]
    acts = []
    for ids in sentences:
        _, cache = bridge.run_with_cache(torch.tensor([ids]), names_filter=subject.site.read)
        acts.append(sae.encode(cache[subject.site.read].flatten(2))[0, len(bos) :])
    rows = []
    for feature in range(D_SAE):
        own = naive_logit_lens(subject, feature, k)
        peaks = []
        for ids, act in zip(sentences, acts, strict=True):
            if float(act[:, feature].max()) > 0:
                at = int(act[:, feature].argmax())
                peaks.append((float(act[at, feature]), ids[len(bos) + at]))
        peaks = sorted(peaks, key=lambda peak: -peak[0])[:n]
        hits = [token in own.tolist() for _, token in peaks]
        unique = {token: token in own.tolist() for _, token in peaks}
        every = torch.cat([act[:, feature] for act in acts])
        rows.append(
            {
                "input_examples": len(peaks),
                "input_score": np.mean(hits) if hits else np.nan,
                "input_score_unique": np.mean(list(unique.values())) if unique else np.nan,
                "max_activation": max((peak[0] for peak in peaks), default=0.0),
                "activation_frequency": float((every > 0).double().mean()),
                "mean_activation": float(every[every > 0].mean()) if (every > 0).any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


def numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    return frame[column].to_numpy(dtype=float, na_value=np.nan)


@pytest.mark.parametrize(
    ("kind", "architecture", "settings"),
    [
        ("llama", "topk", {}),
        ("gemma2", "jumprelu", {"site": "attn.hook_z"}),
        ("neox", "standard", {"site": "resid_pre", "metadata": {"prepend_bos": False}}),
        ("gpt2", "gated", {"normalize_activations": "layer_norm"}),
        ("gemma2", "jumprelu_transcoder", {"site": "ln2.hook_normalized"}),
        ("llama", "temporal", {}),
    ],
)
def test_equals_one_sentence_at_a_time(
    tiny_subject: MakeSubject,
    corpus: dict[str, Any],
    kind: str,
    architecture: str,
    settings: dict[str, Any],
) -> None:
    subject = tiny_subject(kind, architecture, **settings)
    # Little memory, so that sentences fall into several batches.
    few: dict[str, Any] = {"memory_budget": 400_000, "corpus": corpus, "context_length": 12}
    limits: dict[str, Any] = {"min_examples": 3, "max_examples": 20, "top_k": 40}
    frame = score_features(subject, "input", **few, **limits)
    statistics = score_features(subject, "activation", **few)
    expected = naive(subject, corpus, 12, n=20, k=40)
    few_examples = expected["input_examples"] < 3
    expected.loc[few_examples, ["input_score", "input_score_unique"]] = np.nan
    assert numbers(frame, "input_examples").tolist() == expected["input_examples"].tolist()
    for column in ("input_score", "input_score_unique"):
        np.testing.assert_allclose(numbers(frame, column), expected[column], rtol=1e-6)
    for column in ("max_activation", "activation_frequency", "mean_activation"):
        np.testing.assert_allclose(numbers(statistics, column), expected[column], rtol=1e-4)
    assert len(set(expected["input_score"].dropna().tolist())) > 3


def test_the_batch_size_changes_nothing(tiny_subject: MakeSubject, corpus: dict[str, Any]) -> None:
    subject = tiny_subject("llama", "jumprelu")
    one = score_features(subject, "input", corpus=corpus, min_examples=1, memory_budget=2**20)
    two = score_features(subject, "input", corpus=corpus, min_examples=1)
    pd.testing.assert_frame_equal(one, two)


def test_a_feature_that_never_fires_has_no_score(
    tiny_subject: MakeSubject, corpus: dict[str, Any]
) -> None:
    subject = tiny_subject("llama", "jumprelu")
    sae: Any = subject.sae
    sae.threshold.data[7] = 1e9
    row = score_features(subject, "input", [7], corpus=corpus).iloc[0]
    assert row["input_examples"] == 0
    assert pd.isna(row["input_score"])
    assert row["input_top_examples"] is None or len(row["input_top_examples"]) == 0
    row = score_features(subject, "activation", [7], corpus=corpus).iloc[0]
    assert row["activation_frequency"] == row["max_activation"] == 0
    assert pd.isna(row["mean_activation"])


def test_examples_show_the_token_that_counts(
    tiny_subject: MakeSubject, corpus: dict[str, Any]
) -> None:
    frame = score_features(tiny_subject(), "input", corpus=corpus, show_examples=3)
    text = Path(corpus["path"]).read_text()
    for examples in frame["input_top_examples"]:
        assert 1 <= len(examples) <= 3
        for example in examples:
            before, rest = example.split("«")
            token, after = rest.split("»")
            assert token in text.split()
            assert before.strip() in text
            assert after.strip() in text


def test_the_model_has_no_hooks_left(tiny_subject: MakeSubject, corpus: dict[str, Any]) -> None:
    subject = tiny_subject()
    score_features(subject, "input", corpus=corpus)
    assert not any(hook.fwd_hooks for hook in subject.lm.bridge.hook_dict.values())


def test_a_longer_context_than_the_models_is_refused(
    tiny_subject: MakeSubject, corpus: dict[str, Any]
) -> None:
    with pytest.raises(SteerlensError, match=r"context_length=128 is out of range.*2 to 64"):
        score_features(tiny_subject(), "input", corpus=corpus, context_length=128)
