"""The outcome's correlation against numpy's, over texts read one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens import SteerlensError, score_features
from steerlens.config.schema import GenerationConfig
from steerlens.engine.generation import unsteered_texts
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.results import FEATURES, GENERATIONS
from steerlens.scores import outcome
from steerlens.storage.store import Store
from tests.support.naive import naive_logit_lens
from tests.support.naive_scores import naive_largest
from tests.support.tiny import D_SAE

MakeSubject = Callable[..., Subject]
PROMPTS = ["In my experience,", "Note that the w40"]
SETTINGS: dict[str, Any] = {"prompts": PROMPTS, "samples": 20, "max_new_tokens": 8}


def naive_correlation(z_N: np.ndarray, y_N: np.ndarray) -> float:
    if len(z_N) < 30 or z_N.std() == 0 or y_N.std() == 0:
        return np.nan
    return float(np.corrcoef(z_N, y_N)[0, 1])


def test_equals_numpys_correlation_over_sampled_texts(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "topk")
    frame = score_features(subject, "outcome", **SETTINGS, top_k=40, memory_budget=4_000_000)
    settings = GenerationConfig(samples=20, max_new_tokens=8, temperature=1.0, stop=None)
    texts = unsteered_texts(subject, PROMPTS, settings, RunContext())
    assert len(texts) == outcome.Config(**SETTINGS).n_sampled() == 40
    z_NF = np.stack(
        [naive_largest(subject, row["prompt"], list(row["token_ids"]))
         for row in texts.to_dict("records")]
    )  # fmt: skip
    expected = []
    for feature in range(D_SAE):
        own = set(naive_logit_lens(subject, feature, 40).tolist())
        y_N = np.array([sum(token in own for token in ids) for ids in texts["token_ids"]])
        expected.append(naive_correlation(z_NF[:, feature], y_N))
    ours = frame["outcome_correlation"].to_numpy(float, na_value=np.nan)
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert np.isfinite(expected).sum() > 10
    assert set(frame["outcome_texts"].tolist()) == {40}


def test_sampled_texts_are_those_of_every_sae_and_are_found_again(
    tiny_subject: MakeSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, other = (tiny_subject("llama", "topk", layer=layer, seed=layer) for layer in (1, 3))
    settings = GenerationConfig(samples=3, max_new_tokens=5, temperature=1.0, stop=None)
    ctx = RunContext(store=Store(tmp_path / "store"))
    texts = unsteered_texts(subject, PROMPTS, settings, ctx)
    assert len({tuple(ids) for ids in texts["token_ids"]}) > 3
    monkeypatch.setattr(
        "steerlens.engine.generation.texts_in_batches", None
    )  # nothing is generated
    pd.testing.assert_frame_equal(unsteered_texts(other, PROMPTS, settings, ctx), texts)


def save_run(folder: Path, subject: Subject, layer: int | None = None, **columns: Any) -> Path:
    """A run's tables: of features 3 and 9, twenty texts each, and of 3 and 5 together."""
    draw = np.random.default_rng(0)
    rows = [
        {
            "model": subject.lm.name, "sae": subject.name, "hook_name": subject.hook_name,
            "layer": subject.layer if layer is None else layer, "feature": feature,
            "control": None, "together": together, "concept": None,
            "factor": 0.0 if sample < 2 else 2.0, "prompt": PROMPTS[0], "sample": sample,
            "text": "", "token_ids": draw.integers(12, 211, 6).tolist(),
            "concept_success": int(draw.integers(3)), "perplexity": draw.uniform(1, 9),
            **columns,
        }
        for feature, together in ((3, None), (9, None), (3, "5"))
        for sample in range(20)
    ]  # fmt: skip
    folder.mkdir()
    GENERATIONS.write(GENERATIONS.frame(rows), folder)
    features = {name: rows[0][name] for name in (*FEATURES.keys,)}
    FEATURES.write(FEATURES.frame([features]), folder)
    return folder


def test_a_feature_isnt_judged_by_texts_that_it_was_steered_with(
    tiny_subject: MakeSubject, tmp_path: Path
) -> None:
    subject = tiny_subject("llama", "topk")
    run = save_run(tmp_path / "run", subject)
    probes = [3, 5, 9, 11]
    frame: Any = score_features(subject, "outcome", probes, run=str(run), outcome="perplexity")
    rows = GENERATIONS.read(run).to_dict("records")
    z_NF = np.stack([naive_largest(subject, r["prompt"], list(r["token_ids"])) for r in rows])
    y_N = np.array([r["perplexity"] for r in rows])
    factor_N = np.array([r["factor"] for r in rows])
    for feature, row in zip(probes, frame.to_dict("records"), strict=True):
        steered = np.array(
            [r["feature"] == feature or r["together"] == str(feature) for r in rows], dtype=bool
        )
        counts_N = ~(steered & (factor_N != 0))
        assert row["outcome_texts"] == counts_N.sum() == {3: 24, 5: 42, 9: 42, 11: 60}[feature]
        expected = naive_correlation(z_NF[counts_N, feature], y_N[counts_N])
        ours = np.nan if pd.isna(row["outcome_correlation"]) else row["outcome_correlation"]
        assert ours == pytest.approx(expected, abs=2e-4, nan_ok=True)
    assert frame["outcome_correlation"].isna().tolist()[0]  # 24 texts are too few


def test_texts_without_the_outcome_are_left_out(tiny_subject: MakeSubject, tmp_path: Path) -> None:
    subject = tiny_subject("llama", "topk")
    run = save_run(tmp_path / "run", subject)
    texts = GENERATIONS.read(run)
    texts.loc[:9, "perplexity"] = None
    GENERATIONS.write(texts, run)
    frame = score_features(subject, "outcome", [11], run=str(run), outcome="perplexity")
    assert frame["outcome_texts"].tolist() == [50]
    warned = outcome.Config(run=str(run), outcome="perplexity").warnings()
    assert warned == [
        f"10 of 60 texts in {run} have no perplexity: score outcome is over the others."
    ]
    assert not outcome.Config(run=str(run)).warnings()


def test_a_run_stored_without_its_texts_is_refused(
    tiny_subject: MakeSubject, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", tiny_subject("llama", "topk"))
    texts = GENERATIONS.read(run)
    texts["token_ids"] = [[] for _ in range(len(texts))]
    GENERATIONS.write(texts, run)
    with pytest.raises(SteerlensError, match="has no tokens of its texts"):
        outcome.Config(run=str(run)).check()


def test_without_variance_or_enough_texts_there_is_no_correlation() -> None:
    z_N, y_N = np.arange(30.0), np.arange(30.0) % 7
    assert outcome.correlation(z_N, y_N) == pytest.approx(np.corrcoef(z_N, y_N)[0, 1])
    for z, y in ((z_N[:29], y_N[:29]), (np.ones(30), y_N), (z_N, np.ones(30))):
        assert np.isnan(outcome.correlation(z, y))


def test_what_cannot_work_is_refused(tiny_subject: MakeSubject, tmp_path: Path) -> None:
    subject = tiny_subject("llama", "topk")
    run = str(save_run(tmp_path / "run", subject))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"outcome": "llm_concept"}, "known of the texts of a run alone: add score.run=DIR"),
        ({"outcome": "concept_success"}, "give score.concept=WORD"),
        ({"run": str(tmp_path / "no")}, "score.run: there is no folder"),
        ({"run": str(tmp_path)}, "is no run's folder: it has no features.parquet"),
        ({"run": run, "outcome": "perplexty"}, "did you mean 'perplexity'"),
        ({"samples": 1}, "gives 20 texts, and fewer than 30"),
        ({"temperature": 0.0}, "temperature=0.0 of score outcome must be above 0"),
    ]
    for settings, sentence in cases:
        with pytest.raises(SteerlensError, match=sentence):
            outcome.Config(**settings).check()
    asked = outcome.Config(run=run)
    asked.check_subject(subject.lm.name, subject.name)
    with pytest.raises(SteerlensError, match=r"not of gemma-2-2b and .*, whose features are"):
        asked.check_subject("gemma-2-2b", subject.name)
    other = dataclasses.replace(subject, name="another")
    with pytest.raises(SteerlensError, match="and another, whose features are scored"):
        score_features(other, "outcome", [1], run=run)
