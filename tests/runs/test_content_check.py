"""Names that aren't where they are looked up, and counts of more than there is, before loading."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from steerlens.config.compose import compose
from steerlens.config.registry import load_part, parts_of
from steerlens.config.settings import parse_settings
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES
from steerlens.runs.preflight import check
from tests.config.folders import model_folder, sae_folder
from tests.support.axbench import save_concepts
from tests.support.trained import FOLDER

TABLE1 = ["experiment=table1_embedded"]
STEERS = ["steer=grid", "features.n=5"]


def refusal(*overrides: str) -> str:
    with pytest.raises(SteerlensError) as caught:
        check(compose(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([*TABLE1, "judge=local", "judge.model=/nowhere"], "judge.model: there is no folder"),
        ([*TABLE1, "concepts.n=999"], "concepts.n=999 is more than the 20 concepts of embedded."),
        ([*TABLE1, "concepts.only=[array]"], "concept of embedded 'array'; did you mean 'arrays'"),
        ([*TABLE1, "concepts.features=4097"], "concepts.features=4097 is more than the SAE's 4096"),
        ([*TABLE1, "concepts.together=4097"], "concepts.together=4097 is more than the SAE's"),
        (["score=f1", "score.labels=embedded", "score.topic=graph"], "did you mean 'graphs'"),
        (["logit_lens_k=49153"], "logit_lens_k=49153 is more than the 49152 tokens of smollm2"),
        (["score.top_k=49153"], "top_k=49153 of score output is more than the 49152 tokens"),
        (["score=token_confidence", "score.k=49153"], "k=49153 of score token_confidence is more"),
        ([*STEERS, "generation.top_k=49153"], "generation.top_k=49153 is more than the 49152"),
        ([*STEERS, "generation.n_prompts=51"], "n_prompts=51 is more than the 50 neutral prompts"),
        ([*STEERS, "steer.together=[2,6]"], "6 features together are more than features.n=5"),
        (
            ["steer=grid", "features.ids=[1,2]", "steer.together=[3]"],
            "more than the 2 of features.ids",
        ),
        ([*STEERS, "selection.top_n=2", "steer.together=[3]"], "more than selection.top_n=2"),
        ([*STEERS, "selection.score=nope"], "unknown selection.score 'nope'"),
        (
            [*STEERS, "score=output", "selection.score=input_score", "selection.top_n=2"],
            "unknown selection.score 'input_score'; did you mean 'output_score'",
        ),
    ],
)
def test_it_is_refused_without_torch(
    overrides: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert told in refusal(*overrides)


def test_counts_of_all_there_is_pass() -> None:
    check(compose([*TABLE1, "concepts.n=20"]))
    check(compose([*TABLE1, "concepts.only=[arrays,graphs]"]))  # its n is 4
    check(compose(["logit_lens_k=49152", "score.top_k=49152"]))
    check(compose([*STEERS, "generation.n_prompts=50", "steer.together=[5]"]))
    check(compose([*STEERS, "score=both", "selection.score=input_score", "selection.top_n=2"]))


def test_fewer_prompts_of_ones_own_than_n_prompts_are_told() -> None:
    words = [*STEERS, "generation.prompts=[a,b]", "generation.n_prompts=3"]
    assert parse_settings(compose(words)).warnings == [
        "generation.n_prompts=3 is more than the 2 of generation.prompts: all of them are used."
    ]
    assert not parse_settings(compose([*words[:-1], "generation.n_prompts=2"])).warnings


def test_scores_say_which_numbers_they_fill() -> None:
    numbers = {name for name, column in FEATURES.columns.items() if column.kind != "string"}
    numbers = {name for name in numbers if not FEATURES.columns[name].kind.startswith("list")}
    configs = [load_part("scores", name).Config for name in parts_of("scores")]
    filled = [name for config in configs for name in config.FILLS]
    assert sorted(filled) == sorted(numbers - {"layer", "feature"})


def test_concepts_of_a_folder_are_known_by_its_metadata(tmp_path: Path) -> None:
    folder = save_concepts(tmp_path / "set", layer=19, n=3)
    words = [*TABLE1, "concepts=folder", f"concepts.path={folder}"]
    assert "concepts.n=5 is more than the 3 concepts of set" in refusal(*words, "concepts.n=5")
    check(compose(words))  # though the experiment's own n is 4
    assert "unknown concept of set 'nope'" in refusal(*words, "concepts.only=[nope]")
    labels = ["score=f1", f"score.labels={folder}"]
    assert "unknown concept of score.labels" in refusal(*labels, "score.topic=nope")
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "morality.json").write_text("[]")
    assert "'moral'; did you mean 'morality'" in refusal(
        *words[:2], f"concepts.path={pairs}", "concepts.only=[moral]"
    )
    (tmp_path / "empty").mkdir()
    assert "has no metadata.jsonl" in refusal(*words[:2], f"concepts.path={tmp_path / 'empty'}")


@pytest.fixture
def local(tmp_path: Path) -> list[str]:
    """The overrides for a local model with a tokenizer, and an SAE of its layer 1."""
    model = model_folder(tmp_path / "model")
    (model / "tokenizer.json").write_bytes((FOLDER / "model" / "tokenizer.json").read_bytes())
    sae = sae_folder(tmp_path / "sae")
    return ["model=local", f"model.path={model}", "sae=local", f"sae.path={sae}"]


@pytest.mark.parametrize(
    "words",
    [
        ["features.concept=xqzzyw"],
        ["concept=xqzzyw"],
        ["score=concept", "score.concept=[model,xqzzyw]"],
        ["score=outcome", "score.outcome=concept_success", "score.concept=xqzzyw"],
    ],
)
def test_a_concept_without_a_token_is_refused_without_torch(
    local: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    told = refusal(*local, *words)
    assert told.startswith("no token of the vocabulary stands for 'xqzzyw'")
    check(compose([*local, *(word.replace("xqzzyw", "model") for word in words)]))


def test_files_of_neuronpedia_are_opened(local: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "labels.jsonl"
    bad.write_text("no json\n")
    assert "labels.jsonl is not valid JSON" in refusal(*local, f"labels={bad}")
    words = [*local, "score=input", "score.source=neuronpedia", f"score.path={tmp_path}"]
    assert "has neither 1_FEATURE.json nor" in refusal(*words, "layer=1")
    (tmp_path / "1_0.json").write_text(json.dumps({"activations": []}))
    check(compose([*words, "layer=1"]))
