"""Calibrated F1 against every threshold in a loop, and labels that can't be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerlens import SteerlensError, score_features
from steerlens.analysis.payoff import scores_of
from steerlens.config.compose import compose
from steerlens.data.concept_sets.embedded import TOPICS
from steerlens.data.concept_sets.labelled import labelled_split, read_labels
from steerlens.engine.subject import Subject
from steerlens.runs.preflight import check
from steerlens.scores import f1
from tests.support.axbench import save_concepts
from tests.support.frames import steering
from tests.support.tiny import D_SAE

MakeSubject = Callable[..., Subject]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Texts with a word that the others don't have, of several lengths."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(26):
        words = [f"w{draw.integers(12, 90)}" for _ in range(draw.integers(3, 12))]
        label = number % 3 == 0
        rows.append({"text": " ".join([*words, "w150"] if label else words), "label": label})
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def naive_f1(acts_N: np.ndarray, is_positive_N: np.ndarray, threshold: float) -> float:
    detected_N = acts_N >= threshold
    true = (detected_N & is_positive_N).sum()
    if not true:
        return 0.0
    precision, recall = true / detected_N.sum(), true / is_positive_N.sum()
    return 2 * precision * recall / (precision + recall)


@torch.no_grad()
def naive_largest(subject: Subject, texts: list[str]) -> np.ndarray:
    """Largest activations over a text's tokens, BOS left out, (N, F)."""
    rows = []
    for text in texts:
        _, cache = subject.lm.bridge.run_with_cache(subject.to_tokens(text))
        rows.append(subject.sae.encode(cache[subject.hook_name])[0, 1:].amax(dim=0).numpy())
    return np.stack(rows)


def test_threshold_and_f1_are_those_of_trying_every_threshold(
    tiny_subject: MakeSubject, labels: Path
) -> None:
    subject = tiny_subject("llama", "topk")
    settings: dict[str, Any] = {"labels": str(labels), "min_output_score": 0.0}
    frame: Any = score_features(subject, "f1", **settings, memory_budget=2_000_000)
    split = labelled_split(str(labels), None, 0, 0, seed=0)
    train_NF = naive_largest(subject, list(split.train))
    test_NF = naive_largest(subject, list(split.test))
    for feature in range(D_SAE):
        values = sorted({*train_NF[:, feature].tolist()} - {0.0}, reverse=True)
        of_values = [
            naive_f1(train_NF[:, feature], split.is_positive_train, value) for value in values
        ]
        if max(of_values, default=0) == 0:
            assert pd.isna(frame["f1_threshold"][feature])
            assert frame["f1"][feature] == 0
            continue
        best = values[int(np.argmax(of_values))]
        assert frame["f1_threshold"][feature] == pytest.approx(best, rel=1e-4)
        f1_of_test = naive_f1(test_NF[:, feature], split.is_positive_test, best * (1 - 1e-6))
        assert frame["f1"][feature] == pytest.approx(f1_of_test)
    assert frame["f1"].nunique() > 5


def test_of_several_concepts_a_feature_has_the_one_that_it_learnt_best(
    tiny_subject: MakeSubject, tmp_path: Path
) -> None:
    subject = tiny_subject("llama", "topk")
    folder = str(save_concepts(tmp_path / "concepts", 1, n=3))
    settings: dict[str, Any] = {"labels": folder, "min_output_score": 0.0}
    best: Any = score_features(subject, "f1", **settings, topic="best")
    names = [f"concept {c}" for c in range(3)]
    of_each: list[Any] = [score_features(subject, "f1", **settings, topic=name) for name in names]
    splits = [labelled_split(folder, name, 0, 0, seed=0) for name in names]
    train = [naive_largest(subject, list(split.train)) for split in splits]
    for feature in range(D_SAE):
        thresholds = [frame["f1_threshold"][feature] for frame in of_each]
        learnt = [
            0.0
            if pd.isna(threshold)
            else naive_f1(acts_NF[:, feature], split.is_positive_train, threshold * (1 - 1e-4))
            for threshold, acts_NF, split in zip(thresholds, train, splits, strict=True)
        ]
        at = int(np.argmax(learnt))
        if learnt[at] == 0:
            assert best["f1"][feature] == 0
            assert pd.isna(best["f1_topic"][feature])
            continue
        assert best["f1_topic"][feature] == names[at]
        assert best["f1"][feature] == of_each[at]["f1"][feature]
        assert best["f1_threshold"][feature] == thresholds[at]
    assert best["f1_topic"].nunique() == 3


def test_as_the_best_of_the_embedded_concepts_it_takes_part_in_the_criteria() -> None:
    config = compose(["experiment=criteria"])
    check(config)
    assert (config.score["f1"].topic, config.score["f1"].min_output_score) == ("best", 0)
    assert [*compose(["experiment=criteria", "score=[output,mean_logit]"]).score] == [
        *("output", "mean_logit")
    ]
    assert config.score["f1"].most_tokens() == len(TOPICS) * (72 + 36) * 128
    fewer, times = config.score["f1"].reduced()
    assert (fewer.n_train, fewer.n_test, times) == (8, 4, 9)
    assert "f1" in scores_of(steering((0,), 2, f1=[0.5, 0.25]))


def test_the_tokens_that_it_reads_are_at_most(labels: Path, tmp_path: Path) -> None:
    assert f1.Config(labels=str(labels), max_tokens=9).most_tokens() == 26 * 9
    of_topic = f1.Config(labels="embedded", topic="graphs", n_train=3, n_test=2, max_tokens=9)
    assert of_topic.most_tokens() == 2 * (3 + 2) * 9
    assert f1.Config(labels=str(tmp_path), topic="graphs").most_tokens() == 0


def test_features_below_the_output_score_have_none(tiny_subject: MakeSubject, labels: Path) -> None:
    subject = tiny_subject("llama", "topk")
    s_out = score_features(subject, "output", null_directions=0)["output_score"].to_numpy(float)
    least = float(np.median(s_out))
    frame = score_features(subject, "f1", labels=str(labels), min_output_score=least)
    assert (frame["f1"].notna().to_numpy() == (s_out >= least)).all()


def test_ties_are_taken_together_and_zeros_never() -> None:
    acts_NF = np.array([[2, 0], [2, 0], [1, 3], [0, 0]], dtype=np.float32)
    positive_N = np.array([True, False, True, False])
    threshold_F = f1.best_thresholds(acts_NF, positive_N)
    assert threshold_F.tolist() == [1, 3]
    none = f1.best_thresholds(np.zeros((4, 1), dtype=np.float32), positive_N)
    assert np.isnan(none).all()
    assert f1.f1_scores(acts_NF[:, :1], positive_N, none).tolist() == [0]
    assert f1.f1_scores(acts_NF, positive_N, threshold_F).tolist() == [0.8, 2 / 3]


def test_a_file_is_split_so_that_both_halves_have_both_labels(labels: Path) -> None:
    split = labelled_split(str(labels), None, 0, 0, seed=0)
    rows = read_labels(labels)
    assert sorted([*split.train, *split.test]) == sorted(text for text, _ in rows)
    n_positive = sum(label for _, label in rows)
    assert int(split.is_positive_train.sum() + split.is_positive_test.sum()) == n_positive
    for is_positive_N in (split.is_positive_train, split.is_positive_test):
        assert 0 < is_positive_N.sum() < len(is_positive_N)


def test_labels_that_cannot_be_learnt_from_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    line = '{"text": "a", "label": true}'
    for content, sentence in (
        ("not json", "line 1: each line must be"),
        ('{"text": "", "label": true}', "line 1: each line must be"),
        ('{"text": "a", "label": "yes"}', "line 1: each line must be"),
        (f"{line}\n{line}", "has 0 texts with label false; it takes 2 of each"),
    ):
        file.write_text(content)
        with pytest.raises(SteerlensError, match=sentence):
            f1.Config(labels=str(file)).check()
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "score f1 needs labelled texts"),
        ({"labels": str(tmp_path / "no")}, "there is no file or folder"),
        ({"labels": "embedded"}, "name one with score.topic"),
        ({"labels": str(tmp_path)}, "name one with score.topic"),
        ({"labels": "embedded", "topic": "graphs", "n_test": 0}, "n_test=0 of score f1"),
    ]
    for settings, sentence in cases:
        with pytest.raises(SteerlensError, match=sentence):
            f1.Config(**settings).check()
