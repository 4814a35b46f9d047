"""`steerlens concept=WORD`, from the command line to the exported vector."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from steerlens.analysis.toward import best_toward
from steerlens.engine.subject import Subject
from steerlens.results import FEATURES, GENERATIONS, STEERING
from steerlens.runs.export.tensors import load_safetensors
from tests.support import command
from tests.support.naive import naive_steered_logits
from tests.support.tiny import make_decided, save_model, save_sae

MakeSubject = Callable[..., Subject]
Steerlens = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("concept")
    save_sae(folder / "sae", "jumprelu")
    make_decided(save_model(folder / "model"), 4)
    (folder / "texts.txt").write_text("Note that my experience , the\n" * 30)
    return folder


@pytest.fixture(scope="module")
def steerlens(folder: Path, undrawn_figures: None, compared_once: None) -> Steerlens:
    return partial(command.steerlens, folder=folder)


SUBJECT = (
    *("model=local", "model.path=model", "sae=local", "sae.path=sae", "tracking.mode=disabled"),
    *("corpus=text", "corpus.path=texts.txt", "device=cpu", "dtype=float32", "debug=true"),
    *("generation.max_new_tokens=5", "generation.n_prompts=2", "steer.factors=[1,4]"),
)


@pytest.fixture(scope="module")
def done(folder: Path, steerlens: Steerlens) -> tuple[Path, str]:
    """A run toward a concept, and what it printed."""
    run = steerlens(
        "concept=w145", *SUBJECT, "selection.top_n=2", "steer.together=[2]",
        "paths.output_dir=out", "paths.cache_dir=cache", "features.top_k=60",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder / "out", run.stdout


def test_candidates_are_scored_and_the_best_steered_with(done: tuple[Path, str]) -> None:
    features, steering = FEATURES.read(done[0]), STEERING.read(done[0])
    assert 2 < len(features) < 48  # the candidates, not all features
    best = features.sort_values("concept_score", ascending=False).head(2)
    assert set(steering["feature"]) == set(best["feature"])
    assert all(steering["concept_score"].notna().tolist())
    assert all(steering["output_score"].notna().tolist())


def test_the_page_shows_texts_of_each_feature_beside_the_unsteered(done: tuple[Path, str]) -> None:
    folder, page = done
    texts = GENERATIONS.read(folder)
    for feature in STEERING.read(folder)["feature"]:
        assert f"\nlayer 2, feature {feature}\n" in page
    assert page.count("\n    unsteered  ") == page.count("\n    steered    ") > 0
    assert "…" not in page  # nothing is cut
    assert all(texts["concept_success"].notna().tolist())
    assert set(texts["concept"]) == {"w145"}


def test_the_page_names_the_tokens_and_shows_the_features_together(done: tuple[Path, str]) -> None:
    folder, page = done
    assert "\nTokens of it: w145\n" in page
    assert "\nTexts go on from 2 prompts, without a chat template.\n" in page
    steering = STEERING.read(folder)
    best, second = steering.sort_values("concept_score", ascending=False)["feature"].unique()
    both = steering.loc[steering["together"].notna()]
    assert both[["feature", "together"]].to_numpy().tolist() == [[best, f"{second}"]]
    assert all(steering["control"].isna().tolist())
    assert f"layer 2, features {best} + {second} together" in page


def test_concept_success_counts_the_concepts_tokens(done: tuple[Path, str]) -> None:
    texts = GENERATIONS.read(done[0])
    expected = [str(text).split().count("w145") for text in texts["text"]]
    assert texts["concept_success"].tolist() == expected


def test_the_answer_is_in_the_summary(done: tuple[Path, str]) -> None:
    summary = json.loads((done[0] / "summary.json").read_text())
    (word,) = summary["words"]
    row = best_toward(STEERING.read(done[0])).iloc[0]
    assert summary["found"] is word["found"] is True
    for name in ("layer", "feature", "best_factor", "concept_success"):
        assert word[name] == row[name]
    assert row["concept_success"] > row["concept_success_unsteered"]


def test_the_report_and_its_figures_are_about_the_concept(done: tuple[Path, str]) -> None:
    text = (done[0] / "report.md").read_text()
    assert text.startswith("# model: steering toward w145\n")
    pictures = {path.stem for path in (done[0] / "figures").iterdir()}
    assert pictures == {"concept_by_factor", "concept_score_by_layer"}
    assert "<strong>w145</strong>" in text.replace(" w145", "w145")
    assert "## By layer" not in text


def test_the_report_shows_the_same_page(done: tuple[Path, str], steerlens: Steerlens) -> None:
    again = steerlens("report", "out")
    assert again.returncode == 0
    page, _, _ = again.stdout.partition("Results:")
    assert page.strip()
    assert page in done[1]


def test_the_winner_is_exported(done: tuple[Path, str], steerlens: Steerlens) -> None:
    folder, _ = done
    row = best_toward(STEERING.read(folder)).iloc[0]
    run = steerlens("export", "out", "factor=2")
    assert run.returncode == 0, run.stderr
    paths = [Path(line) for line in run.stdout.splitlines()]
    assert [path.suffix for path in paths] == [".safetensors", ".pt", ".py"]
    (vector,) = load_safetensors(folder.parent / paths[0])
    assert (vector.card.layer, vector.card.feature) == (row["layer"], row["feature"])
    assert vector.card.factor == 2
    assert torch.isfinite(vector.vector_D).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "nowhere"], "is no run's folder"),
        (["export", "out", "feature=47", "layer=9"], "didn't steer with feature=47 layer=9"),
        (["export", "out", "feture=1"], "'feature'"),
        (["export", "out", "feature=x"], "must be a number"),
        (["export"], "usage: steerlens export"),
        (["concept=experiense", *SUBJECT], "near it are experience"),
        (["concept=", *SUBJECT], "names nothing"),
        (["experiment=concept", *SUBJECT], "names nothing"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    done: tuple[Path, str], steerlens: Steerlens, words: list[str], message: str
) -> None:
    run = steerlens(*[word for word in words if word != "debug=true"])
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_the_concept_score_is_the_output_score_toward_its_tokens(
    tiny_subject: MakeSubject,
) -> None:
    from steerlens import score_features

    subject = tiny_subject("gemma2", "jumprelu")
    frame = score_features(subject, "concept", features=range(0, 48, 9), concept="experience")
    own = subject.lm.tokenizer.convert_tokens_to_ids("experience")
    for row in frame.to_dict("records"):
        logits, _ = naive_steered_logits(subject, row["feature"], "From my experience,", 10.0)
        rank = int((logits > logits[own]).sum())
        expected = (1 - rank / len(logits)) * float(logits.softmax(-1)[own])
        assert row["concept_score"] == pytest.approx(expected, rel=1e-4)
    assert not any(frame["output_score"].notna().tolist())
