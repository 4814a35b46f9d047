"""A run that tries words until features steer toward enough of them, as the demo does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens.analysis.toward import best_toward
from steerlens.config.compose import compose
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES, GENERATIONS, STEERING, WORDS
from steerlens.runs.preflight import check
from steerlens.runs.run import run
from tests.support.generating import count_decoded
from tests.support.templates import save_template
from tests.support.tiny import D_SAE, make_decided, save_model, save_sae

WORD_LIST = ["zebra", "w145", "w96", "w52", "w12", "w135"]
TEXTS = ("generation.max_new_tokens=6", "steer.factors=[3,20]", "generation.n_prompts=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toward")
    save_template(make_decided(save_model(folder / "model"), 4))
    save_sae(folder / "sae" / "layer_1", "jumprelu", layer=1)
    save_sae(folder / "sae" / "layer_2", "jumprelu")
    (folder / "texts.txt").write_text("Note that my experience , the\n" * 30)
    return folder


def finished(folder: Path, name: str, *words: str) -> Path:
    """The folder of a run on the tiny subject, in this process."""
    config = compose(
        [
            *TEXTS, *words, "model=local", f"model.path={folder / 'model'}", "sae=local",
            f"sae.path={folder / 'sae'}", "device=cpu", "dtype=float32", "corpus=text",
            f"corpus.path={folder / 'texts.txt'}", "tracking.mode=disabled",
            f"paths.output_dir={folder / name}", f"paths.cache_dir={folder / 'cache'}",
        ]
    )  # fmt: skip
    check(config)
    run(config)
    return folder / name


@pytest.fixture(scope="module")
def demo(folder: Path, undrawn_figures: None) -> Path:
    return finished(folder, "demo", "experiment=demo", f"toward.words={WORD_LIST}", "toward.n=2")


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_all_features_have_both_scores_and_only_found_words_texts(demo: Path) -> None:
    features, texts = FEATURES.read(demo), GENERATIONS.read(demo)
    assert len(features) == 2 * D_SAE
    assert all(features["output_score"].notna().tolist())
    assert all(features["input_examples"].notna().tolist())
    assert all(features["concept_score"].isna().tolist())
    words = WORDS.read(demo)
    steered = words.loc[words["concept_success"].notna(), "word"]
    assert set(texts["concept"]) == set(steered)
    arms = [*texts[["layer", "feature", "concept"]].drop_duplicates().itertuples(index=False)]
    assert len({(layer, feature) for layer, feature, _ in arms}) == len(arms)
    assert len(texts) == len(arms) * 3 * 4  # factors and prompts


def test_words_are_tried_in_their_order_until_enough_are_found(demo: Path) -> None:
    words = WORDS.read(demo)
    assert words["word"].tolist() == WORD_LIST[: len(words)]
    found = words["reason"].isna().tolist()
    assert sum(found) == 2
    assert found[-1]
    assert "no token of the vocabulary stands for 'zebra'" in words["reason"][0]
    summary = summary_of(demo)
    assert summary["found"] is True
    assert [one["found"] for one in summary["words"]] == found


def test_texts_of_several_words_are_made_together_once(
    folder: Path, undrawn_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = count_decoded(monkeypatch)
    words = ("experiment=demo", f"toward.words={WORD_LIST[1:4]}", "toward.n=null", "seed=1")
    texts = GENERATIONS.read(finished(folder, "together", *words))
    assert sum(sizes) == len(texts)
    assert len(set(texts["concept"].tolist())) > 1
    assert len(sizes) == len(set(texts["layer"].tolist()))


def test_concept_success_counts_the_row_s_own_word(demo: Path) -> None:
    texts = GENERATIONS.read(demo)
    expected = [
        str(text).split().count(word)
        for text, word in zip(texts["text"], texts["concept"], strict=True)
    ]
    assert texts["concept_success"].tolist() == expected


def test_the_answer_for_a_word_is_that_of_concept(folder: Path, demo: Path) -> None:
    alone = finished(folder, "alone", "concept=w145", "experiment=concept", "selection.top_n=3")
    (answer,) = WORDS.read(alone).to_dict("records")
    of_demo = WORDS.read(demo).set_index("word").loc["w145"]
    for name in ("candidates", "layer", "feature", "best_factor", "concept_success"):
        assert answer[name] == pytest.approx(of_demo[name])
    texts, of_word = GENERATIONS.read(alone), GENERATIONS.read(demo)
    of_word = of_word.loc[of_word["concept"] == "w145"].reset_index(drop=True)
    columns = ["layer", "feature", "factor", "prompt", "text", "concept_success"]
    order = columns[:4]
    pd.testing.assert_frame_equal(
        texts.loc[:, columns].sort_values(by=order, ignore_index=True),
        of_word.loc[:, columns].sort_values(by=order, ignore_index=True),
    )


def test_prompts_are_requests_inside_the_template_and_the_run_says_so(demo: Path) -> None:
    provenance = json.loads((demo / "provenance.json").read_text())
    assert provenance["chat_template"] is True
    assert set(GENERATIONS.read(demo)["prompt"]) >= {"Tell me a short story."}
    assert (
        "Texts answer 4 prompts inside the model's chat template."
        in (demo / "report.md").read_text()
    )


def test_the_report_has_all_layers_and_the_words_but_nothing_of_features_in_general(
    demo: Path,
) -> None:
    text = (demo / "report.md").read_text()
    for title in ("## Steering toward words", "## By layer", "## Best output features"):
        assert title in text
    assert "### What to select features by" not in text
    pictures = {path.stem for path in (demo / "figures").iterdir()}
    assert "concept_by_factor" in pictures
    assert "success_by_threshold" not in pictures
    assert not (demo / "pmi.json").exists()


def test_steering_has_the_unsteered_rate_beside_the_steered(demo: Path) -> None:
    steering, texts = STEERING.read(demo), GENERATIONS.read(demo)
    chosen = steering.loc[steering["best_factor"].notna()]
    for row in best_toward(chosen).to_dict("records"):
        own = texts[(texts["layer"] == row["layer"]) & (texts["feature"] == row["feature"])]
        for factor, suffix in ((0.0, "_unsteered"), (row["best_factor"], "")):
            rows = own.loc[own["factor"] == factor, "concept_success"]
            assert row[f"concept_success{suffix}"] == pytest.approx(rows.mean())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["selection.threshold=0.999"], "and below 0.999 a feature hardly steers"),
        (
            ["features.top_k=1"],
            "no feature has one of its tokens among the first 1 that it promotes",
        ),
        (["steer.factors=[0.000001]"], "no more of its tokens than the unsteered ones"),
    ],
)
def test_a_run_that_finds_nothing_says_so_and_is_done(
    folder: Path,
    undrawn_figures: None,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    reason: str,
) -> None:
    words = ["concept=experience", "experiment=concept", *settings]
    got = finished(folder, f"nothing{len(reason)}", *words)
    summary = summary_of(got)
    assert summary["found"] is False
    assert reason in summary["words"][0]["reason"]
    assert json.loads((got / "status.json").read_text())["state"] == "done"
    shown = capsys.readouterr().out
    assert "Nothing here steers toward 'experience': " in shown
    assert reason in shown
    assert "Nothing here steers toward" in (got / "report.md").read_text()
    assert len(FEATURES.read(got)) == summary["words"][0]["candidates"]


def test_random_candidates_of_each_word_are_all_that_is_scored_and_steered_with(
    folder: Path, demo: Path, undrawn_figures: None
) -> None:
    words = WORD_LIST[1:4]
    some = (
        "experiment=criteria_words", "score=output", "features.per_word=2", "study.name=null",
        "toward.threshold=0", "choice.split=true",
    )  # fmt: skip
    got = finished(folder, "per_word", *some, f"toward.words={words}")
    features, every = FEATURES.read(got), FEATURES.read(demo)
    token_of = WORDS.read(got).set_index("word")["token_ids"]
    stands_for = {
        word: {
            (layer, feature)
            for layer, feature, ids in every[
                ["layer", "feature", "logit_lens_token_ids"]
            ].itertuples(index=False)
            if {*ids} & {*token_of[word]}
        }
        for word in words
    }
    keys = {*features[["layer", "feature"]].itertuples(index=False, name=None)}
    assert keys <= set.union(*stands_for.values())
    for word, candidates in stands_for.items():
        for layer in (1, 2):
            of_layer = {key for key in candidates if key[0] == layer}
            assert len(keys & of_layer) >= min(2, len(of_layer)), word
    steered = STEERING.read(got)
    assert {*steered[["layer", "feature"]].itertuples(index=False, name=None)} == keys
    assert all(steered["concept_score"].notna().tolist())
    # One word's draw doesn't hang on the others.
    alone = finished(folder, "per_word_alone", *some, f"toward.words=[{words[1]}]")
    drawn = {*FEATURES.read(alone)[["layer", "feature"]].itertuples(index=False, name=None)}
    assert drawn <= keys
    assert len(drawn) < len(stands_for[words[1]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["features.per_word=2"], "features.per_word.*toward.words"),
        (["features.per_word=0", "toward.words=[w96]"], "features.per_word=0 must be at least 1"),
        (["features.per_word=2", "features.n=3", "toward.words=[w96]"], "are both given"),
    ],
)
def test_candidates_of_words_need_words(folder: Path, settings: list[str], message: str) -> None:
    with pytest.raises(SteerlensError, match=message):
        finished(folder, "refused", "steer=grid", *settings)
