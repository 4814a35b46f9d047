"""Concepts of the installed documentation: labelled by module, split by module, fixed by a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from steerlens.config.prompts import REQUESTS
from steerlens.config.schema import ConceptsConfig
from steerlens.data.concept_sets import Concept, ConceptSet, LabelledText, load
from steerlens.data.concept_sets.embedded import (
    LEAST,
    OPENING,
    PER_MODULE,
    TOPICS,
    _is_held_out,
    as_answers,
    embedded_concepts,
)
from steerlens.data.corpus.installed import documents
from steerlens.errors import SteerlensError

SUBJECTS = {"sea": ("boats", "ships.sail"), "sky": ("birds", "ships.fly"), "land": ("roads",)}
WORDS = ("amber", "birch", "cedar", "daisy", "ember", "fern", "grove", "heath", "iris", "juniper",
         "kelp", "lilac", "maple", "nettle", "olive", "poppy")  # fmt: skip


def write_module(root: Path, module: str, topic: str, n: int) -> None:
    """A module of `n` documented functions whose sentences name their topic."""
    path = root / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for k in range(n):
        digest = hashlib.sha256(f"{module} {k}".encode()).digest()
        name = " ".join(WORDS[byte % 16] for byte in digest[:3])
        last = module.rpartition(".")[2]
        lines.append(
            f'def f{k}():\n    """The {name} of the {topic} is for all that {last} have to say. '
            f'It may be used with the {topic} and not with the others."""\n'
        )
    path.write_text("\n".join(lines))


def held_out(pattern: str, n: int) -> list[str]:
    """Names of modules that are held out of the model's training."""
    names = (pattern.format(k) for k in range(10_000))
    found = [name for name in names if _is_held_out(name)]
    return found[:n]


def trained(pattern: str, n: int) -> list[str]:
    names = (pattern.format(k) for k in range(10_000))
    return [name for name in names if not _is_held_out(name)][:n]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for topic, packages in SUBJECTS.items():
        for package in packages:
            for module in trained(package + ".part{}", 6):
                write_module(tmp_path, module, topic, 15)
            for module in held_out(package + ".late{}", 4):
                write_module(tmp_path, module, topic, 8)
    return tmp_path


def made(root: Path, **settings: object) -> ConceptSet:
    values = {"n_train": 24, "n_test": 12, "n_prompts": 6, "topics": SUBJECTS, **settings}
    return embedded_concepts(roots=[root], **values)  # type: ignore[arg-type]


def whole(example: LabelledText) -> str:
    return example.prompt + example.text


def test_positives_are_of_the_topic_and_negatives_of_the_others(root: Path) -> None:
    found = made(root)
    assert [one.name for one in found.concepts] == list(SUBJECTS)
    assert not found.are_instructions
    for concept in found.concepts:
        sizes = (concept.positives, concept.negatives)
        assert [len(texts) for texts in sizes] == [24, 24]
        assert len(concept.test_positives) == len(concept.test_negatives) == 12
        for example in (*concept.positives, *concept.test_positives):
            assert f"the {concept.name} " in whole(example)
        for example in (*concept.negatives, *concept.test_negatives):
            assert f"the {concept.name} " not in whole(example)
    negatives = [whole(one) for one in found.concepts[0].negatives]
    assert sum("sky" in one for one in negatives) == sum("land" in one for one in negatives) == 12


def test_no_text_is_in_training_and_test_and_no_module_either(root: Path) -> None:
    for concept in made(root).concepts:
        train, test = concept.positives, concept.test_positives
        assert not set(train) & set(test)
        assert len({*train, *test}) == 36
        modules = [{whole(one).split("that ")[1].split()[0] for one in texts}
                   for texts in (train, test)]  # fmt: skip
        # Packages of a topic have modules of the same name.
        if len(SUBJECTS[concept.name]) == 1:
            assert not modules[0] & modules[1]


def test_a_module_gives_no_more_than_its_share(root: Path) -> None:
    for concept in made(root).concepts:
        of_module = [whole(one).split("that ")[1].split()[0] for one in concept.positives]
        most = PER_MODULE * len(SUBJECTS[concept.name])
        assert max(of_module.count(one) for one in of_module) <= most


def test_prompts_are_openings_of_held_out_sentences_of_other_topics(root: Path) -> None:
    found = made(root)
    sentences = [one.text for one in documents([root], split="validation")]
    for concept in found.concepts:
        prompts = [*concept.choosing, *concept.evaluating]
        assert len(set(prompts)) == 6
        assert len(concept.choosing) == 3
        for prompt in prompts:
            assert len(prompt.split()) == OPENING
            source = next(one for one in sentences if one.startswith(prompt))
            assert f"the {concept.name} " not in source


def test_the_seed_alone_decides(root: Path) -> None:
    one = made(root)
    assert made(root) == one
    assert made(root, seed=1).concepts[0].positives != one.concepts[0].positives


def test_a_topic_that_is_not_installed_is_left_out_and_said_so(root: Path) -> None:
    topics = {**SUBJECTS, "space": ("rockets",)}
    found = made(root, topics=topics)
    assert [one.name for one in found.concepts] == list(SUBJECTS)
    assert "space is left out" in found.notes[0]
    assert found.concepts == made(root).concepts


def test_a_topic_with_few_texts_has_them_all_and_says_so(root: Path) -> None:
    for module in trained("moors.part{}", 3):
        write_module(root, module, "moor", LEAST)
    found = made(root, topics={**SUBJECTS, "moor": ("moors",)})
    moor = found.concepts[-1]
    assert LEAST <= len(moor.positives) < 24
    assert len(moor.negatives) == len(moor.positives)
    assert f"moor has {len(moor.positives)} of 24 texts to train" in found.notes[0]


def test_more_texts_than_any_topic_has_are_refused_with_the_most(root: Path) -> None:
    most = max(len(concept.positives) for concept in made(root, n_train=60).concepts)
    assert most == 60
    with pytest.raises(SteerlensError, match=r"^n_train=5,000 is more texts than .* has most, \d+"):
        made(root, n_train=5000)
    with pytest.raises(SteerlensError, match=r"^n_test=5,000 is more texts than"):
        made(root, n_test=5000)


def test_all_topics_that_have_fewer_are_told_in_one_line(root: Path) -> None:
    for module in trained("moors.part{}", 3):
        write_module(root, module, "moor", LEAST)
    (note,) = made(root, n_test=30, topics={**SUBJECTS, "moor": ("moors",)}).notes
    of_topics = [sentence.partition(" has ")[0] for sentence in note.split("; ")]
    assert of_topics == ["land", "moor"]


def test_only_as_many_concepts_as_there_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_embedded", lambda *_settings: made(root))
    config = ConceptsConfig(name="embedded", source="embedded", n=3)
    assert not load.load_concepts(config, 0, 0).notes
    for n, only, told in ((4, [], 3), (2, ["sea"], 1)):
        concepts = load.load_concepts(dataclasses.replace(config, n=n, only=only), 0, 0)
        assert len(concepts) == told
        assert concepts.notes == (
            f"concepts.n={n} is more than the {told} concepts of embedded: all of them are taken.",
        )


def test_no_documentation_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match="fewer than two topics"):
        made(tmp_path)


def test_too_few_openings_are_refused(root: Path) -> None:
    with pytest.raises(SteerlensError, match="use fewer prompts"):
        made(root, n_prompts=5000)


def test_there_are_at_least_12_topics_and_no_module_in_two() -> None:
    assert len(TOPICS) >= 12
    prefixes = [one for all_of in TOPICS.values() for one in all_of]
    assert len(prefixes) == len(set(prefixes))


@pytest.mark.slow
def test_the_installed_documentation_has_at_least_12_concepts() -> None:
    found = embedded_concepts(n_train=12, n_test=6)
    assert len(found) >= 12
    found.check_texts()
    assert all(len(one.positives) == 12 for one in found.concepts)


def test_a_concept_sets_ids_are_its_own() -> None:
    with pytest.raises(SteerlensError, match="2 concepts with the id 3"):
        ConceptSet("x", (Concept(3, "a"), Concept(3, "b")), False)
    with pytest.raises(SteerlensError, match="no concept"):
        ConceptSet("x", (), False)
    two = ConceptSet("x", (Concept(3, "apple"), Concept(4, "pear")), False)
    assert two.only(["pear"]).concepts == (Concept(4, "pear"),)
    with pytest.raises(SteerlensError, match="did you mean 'apple'"):
        two.only(["aple"])


def test_concept_sets_know_nothing_of_torch() -> None:
    code = (
        "import sys, steerlens.data.concept_sets.embedded, steerlens.data.concept_sets.axbench, "
        "steerlens.data.concept_sets.instructions; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_in_a_chat_texts_answer_requests_that_steering_is_not_judged_on(root: Path) -> None:
    plain = made(root)
    in_chat = as_answers(plain, 6, seed=0)
    assert in_chat.are_instructions
    for concept, before in zip(in_chat.concepts, plain.concepts, strict=True):
        judged = [*concept.choosing, *concept.evaluating]
        assert len(set(judged)) == 6
        assert set(judged) <= set(REQUESTS)
        for part in ("positives", "negatives", "test_positives", "test_negatives"):
            answers = getattr(concept, part)
            assert [one.text for one in answers] == [whole(one) for one in getattr(before, part)]
            assert {one.prompt for one in answers} <= set(REQUESTS) - set(judged)
    assert as_answers(plain, 6, seed=0) == in_chat
    with pytest.raises(SteerlensError, match="n_prompts=50 must be less than 50"):
        as_answers(plain, 50, seed=0)
