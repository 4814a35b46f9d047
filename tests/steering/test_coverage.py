"""Words of a list and the features that steer toward them, against a loop over the words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import pytest

from steerlens import load_subject
from steerlens.config.compose import compose
from steerlens.config.schema import (
    ChoiceConfig,
    CoverageConfig,
    GenerationConfig,
    RunConfig,
    SteerConfig,
)
from steerlens.config.settings import parse_settings, parse_steering
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.results import COVERAGE
from steerlens.runs.plan.steering import planned_words
from steerlens.runs.preflight import check
from steerlens.runs.run import run
from steerlens.scores import RunContext, concept, output
from steerlens.steering import coverage
from steerlens.steering.coverage import cover_layer, prompt_settings, word_tokens
from steerlens.steering.features import steer_layer
from steerlens.storage.store import Store
from tests.support.generating import count_decoded
from tests.support.naive import naive_logit_lens, naive_steered_logits, unsteered
from tests.support.tiny import D_SAE, D_VOCAB, make_decided, save_model, save_sae

WORDS = ["w96", "zebra", "w27", "w52", "w60 w70 w80", "w145", "experience", "w135", "w12", "w64"]
TOP_K, THRESHOLD, FACTOR = 5, 0.2, 10.0
FACTORS = [3.0, 20.0]
PROMPTS = ["Note that", "In my experience,", "the", "From my experience"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decided")
    make_decided(save_model(folder / "model"), 4)
    save_sae(folder / "sae", "jumprelu")
    (folder / "texts.txt").write_text("Note that my experience , the\n" * 30)
    return folder


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    paths = {"model.path": folder / "model", "sae.path": folder / "sae"}
    return load_subject("local", "local", "all", **paths, **{"paths.cache_dir": folder})


def config_of(budget: float = 1e4, **settings: Any) -> RunConfig:
    return RunConfig(
        score=output.Config(),
        coverage=CoverageConfig(**{"top_k": TOP_K, "threshold": THRESHOLD, **settings}),
        steer=SteerConfig(factors=FACTORS),
        generation=GenerationConfig(prompts=PROMPTS, samples=2, max_new_tokens=4, stop=None),
        choice=ChoiceConfig(perplexity_budget=budget),
    )


def covered(
    subject: Subject,
    words: list[str],
    config: RunConfig | None = None,
    run: RunContext | None = None,
) -> pd.DataFrame:
    found = word_tokens(subject.lm.tokenizer, words)
    settings = parse_settings(config or config_of())
    score = prompt_settings(settings.scores.values())
    rows = cover_layer(
        subject, found, settings.coverage, score, settings.steering, run or RunContext()
    )
    return COVERAGE.frame(rows)


def naive_best(subject: Subject, word: str) -> tuple[int, int, float] | None:
    """(candidates, feature, score) by one forward per candidate."""
    vocabulary = [str(subject.lm.tokenizer.decode([i])).strip().lower() for i in range(D_VOCAB)]
    ids = [i for i, text in enumerate(vocabulary) if text in word.split()]
    scores = {}
    cache = unsteered(subject, "From my experience,")
    for feature in range(D_SAE):
        if not {*naive_logit_lens(subject, feature, TOP_K).tolist()} & {*ids}:
            continue
        logits, _ = naive_steered_logits(
            subject, feature, "From my experience,", FACTOR, cache=cache
        )
        best = max(ids, key=lambda i: float(logits[i]))
        rank = int((logits > logits[best]).sum())
        scores[feature] = (1 - rank / D_VOCAB) * float(logits.softmax(-1)[best])
    if not scores:
        return None
    feature = max(sorted(scores), key=lambda one: scores[one])
    return len(scores), feature, scores[feature]


def naive_shown(texts: pd.DataFrame, word: str, budget: float) -> dict[str, Any] | None:
    """The best factor on every second prompt, and what the others show, one text at a time."""
    halves = [sorted(PROMPTS)[::2], sorted(PROMPTS)[1::2]]
    rows = texts.to_dict("records")

    def at(factor: float, half: list[str]) -> tuple[float, float, int]:
        some = [row for row in rows if row["factor"] == factor and row["prompt"] in half]
        found = [
            all(re.search(rf"\b{one}\b", row["text"].lower()) is not None for one in word.split())
            for row in some
        ]
        return mean(found), mean(row["perplexity"] for row in some), len(some)

    allowed = [s for s in FACTORS if at(s, halves[0])[1] <= budget * at(0, halves[0])[1]]
    if not allowed:
        return None
    best = max(allowed, key=lambda s: at(s, halves[0])[0])  # the first of equal ones
    shown, perplexity, n = at(best, halves[1])
    unsteered, perplexity_unsteered, _ = at(0, halves[1])
    return {
        "best_factor": best,
        "word_share": shown,
        "word_share_unsteered": unsteered,
        "perplexity": perplexity,
        "perplexity_unsteered": perplexity_unsteered,
        "texts": n,
    }


@pytest.mark.parametrize("budget", [1e4, 6.0])
def test_equals_a_loop_over_the_words(subject: Subject, budget: float) -> None:
    config = config_of(budget)
    found = covered(subject, WORDS, config)
    assert found["word"].tolist() == WORDS
    reasons, shown = set(), []
    for row in found.to_dict("records"):
        word, reason = row["word"], None if pd.isna(row["reason"]) else row["reason"]
        reasons.add(reason and reason.partition(" of")[0])
        best = None if word == "zebra" else naive_best(subject, word)
        if best is None:
            assert row["candidates"] == 0 if word != "zebra" else pd.isna(row["candidates"])
            assert reason
            assert pd.isna(row["feature"])
            continue
        n, feature, score = best
        assert (row["candidates"], row["feature"]) == (n, feature)
        assert row["concept_score"] == pytest.approx(score, abs=1e-6)
        expected = None
        if score >= THRESHOLD:
            texts = steer_layer(subject, [feature], parse_steering(config), RunContext())
            expected = naive_shown(texts, word, budget)
        names = ("best_factor", "word_share", "word_share_unsteered", "perplexity", "texts")
        assert (reason is None) == (expected is not None)
        for name in (*names, "perplexity_unsteered"):
            if expected is None:
                assert pd.isna(row[name])
            else:
                assert row[name] == pytest.approx(expected[name], rel=1e-5)
        shown.append(expected and expected["word_share"])
    # What was compared has all cases.
    assert len(reasons) == (4 if budget == 1e4 else 5)
    assert {*shown} >= ({None, 0.0, 1.0} if budget == 1e4 else {None, 1.0})


def test_two_words_of_one_feature_share_its_texts(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[pd.DataFrame] = []
    real = coverage.words_shown

    def seen(frame: pd.DataFrame, *rest: Any) -> pd.DataFrame:
        texts.append(frame)
        return real(frame, *rest)

    monkeypatch.setattr(coverage, "words_shown", seen)
    decoded = count_decoded(monkeypatch)
    found = covered(subject, ["w27", "w52", "w145"])
    (feature, again, other) = found["feature"].tolist()
    assert feature == again != other
    assert sum(decoded) == len(texts[0]) == 2 * 3 * len(PROMPTS) * 2
    # The same as of the feature alone.
    alone = steer_layer(subject, [feature], parse_steering(config_of()), RunContext())
    own = texts[0].loc[texts[0]["feature"] == feature, alone.columns].reset_index(drop=True)
    assert own["text"].tolist() == alone["text"].tolist()


def test_rows_depend_on_no_other_word_and_are_found_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["w145", "w60 w70 w80", "w135"]
    run = RunContext(store=Store(tmp_path))
    every = covered(subject, words, run=run)
    decoded = count_decoded(monkeypatch)
    small = replace(run, memory_budget=2**20)
    again = covered(subject, words[::-1], run=small).iloc[::-1].reset_index(drop=True)
    assert decoded == []
    pd.testing.assert_frame_equal(again, every, rtol=1e-4)
    config = config_of()
    config.generation.batch_size = 5
    alone = pd.concat([covered(subject, [word], config) for word in words], ignore_index=True)
    pd.testing.assert_frame_equal(alone, every, rtol=1e-4)


def test_equally_good_features_give_the_lowest_id(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {row["word"]: row for row in covered(subject, WORDS).to_dict("records")}
    word = max(("w96", "w145", "w52"), key=lambda one: counts[one]["candidates"])
    assert counts[word]["candidates"] > 1

    def equal(_: Any, ids_B: Any, *__: Any) -> dict[str, Any]:
        # But for rounding, which favours the highest id.
        return {"output_score": 0.9 + 1e-9 * ids_B.double()}

    monkeypatch.setattr(output, "score_toward", equal)
    found = coverage.best_features(
        subject,
        {word: word_tokens(subject.lm.tokenizer, [word])[word]},  # type: ignore[dict-item]
        TOP_K,
        output.Config(),
        RunContext(),
    )
    naive = [
        feature
        for feature in range(D_SAE)
        if subject.lm.tokenizer.convert_tokens_to_ids(word)
        in naive_logit_lens(subject, feature, TOP_K).tolist()
    ]
    assert found[word].candidates == len(naive)
    assert found[word].feature == min(naive)


def test_the_score_has_the_settings_of_the_run(subject: Subject) -> None:
    config = config_of()
    config.score = {"concept": concept.Config(prompt="Note that", factor=4.0, concept="w145")}
    (other,) = covered(subject, ["w145"], config)["concept_score"]
    ids = [subject.lm.tokenizer.convert_tokens_to_ids("w145")]
    scores = []
    cache = unsteered(subject, "Note that")
    for feature in range(D_SAE):
        if ids[0] in naive_logit_lens(subject, feature, TOP_K).tolist():
            logits, _ = naive_steered_logits(subject, feature, "Note that", 4.0, cache=cache)
            rank = int((logits > logits[ids[0]]).sum())
            scores.append((1 - rank / D_VOCAB) * float(logits.softmax(-1)[ids[0]]))
    assert other == pytest.approx(max(scores), abs=1e-6)
    (default,) = covered(subject, ["w145"])["concept_score"]
    assert other != pytest.approx(default, abs=1e-3)


def test_controls_and_companions_of_the_run_have_no_part(subject: Subject) -> None:
    config = config_of()
    config.steer = replace(config.steer, controls=["random_direction"], together=[2], search=True)
    pd.testing.assert_frame_equal(covered(subject, WORDS, config), covered(subject, WORDS))


def test_a_word_without_token_is_reported_and_a_list_without_any_refused(subject: Subject) -> None:
    tokenizer = subject.lm.tokenizer
    found = word_tokens(tokenizer, ["zebra", "experience"])
    assert isinstance(found["zebra"], str)
    assert "no token of the vocabulary stands for 'zebra'" in found["zebra"]
    with pytest.raises(SteerlensError, match=r"^none of the 2 coverage\.words .*'zebra'") as one:
        word_tokens(tokenizer, ["zebra", "volcano"])
    assert "\n" not in str(one.value)


def test_a_plan_counts_the_texts_of_all_words_at_all_factors() -> None:
    config = config_of(words=["a", "b", "c"])
    planned = planned_words(parse_settings(config), 5)
    texts = 3 * 5 * (1 + len(FACTORS)) * len(PROMPTS) * 2
    assert planned == (3, texts)
    config.shard = "0/2"
    part = planned_words(parse_settings(config), 5)
    assert part
    assert part.words == 1
    assert planned_words(parse_settings(config_of()), 5) is None


@pytest.mark.slow
def test_shards_of_a_run_share_the_words(folder: Path, undrawn_figures: None) -> None:
    def words_of(name: str, *words: str) -> pd.DataFrame:
        config = compose(
            [
                *("model=local", f"model.path={folder / 'model'}", "sae=local"),
                *(f"sae.path={folder / 'sae'}", "device=cpu", "dtype=float32"),
                *("corpus=text", f"corpus.path={folder / 'texts.txt'}", "features.ids=[1,2]"),
                *("tracking.mode=disabled", "coverage.words=[w96,zebra,w145]"),
                *("coverage.top_k=5", "choice.perplexity_budget=1e4", "steer.factors=[3]"),
                *("generation.n_prompts=2", "generation.max_new_tokens=3", *words),
                *(f"paths.output_dir={folder / name}", f"paths.cache_dir={folder / 'cache'}"),
            ]
        )
        check(config)
        run(config)
        return COVERAGE.read(folder / name)

    whole = words_of("whole")
    assert whole["word"].tolist() == ["w96", "zebra", "w145"]
    assert whole["word_share"].notna().tolist() == [True, False, True]
    parts = [words_of(f"part{i}", f"shard={i}/2") for i in range(2)]
    assert [len(part) for part in parts] == [1, 2]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole, rtol=1e-4)
    report = (folder / "whole" / "report.md").read_text()
    assert "## Words" in report
    found = json.loads((folder / "whole" / "summary.json").read_text())["coverage"]
    assert (found["words"], found["formed"]) == (3, 2)
    assert found["covered"] == sum(whole["word_share"].fillna(0) >= 0.5)
    with pytest.raises(SteerlensError, match=r"none of the 1 coverage\.words"):
        words_of("none", "coverage.words=[zebra]")
