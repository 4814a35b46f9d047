"""Labelled texts, detection, and all methods on one subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from steerlens.config.registry import loadable_parts
from steerlens.data.concept_sets import LabelledText
from steerlens.engine.generation.decoding import decode
from steerlens.engine.generation.sampling import Sampling
from steerlens.engine.generation.stopping import Stopping
from steerlens.engine.intervention import Operation
from steerlens.engine.intervention.hooks import SteeringHooks
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext
from steerlens.steering.methods import loreft
from steerlens.steering.methods.arms import EDITS, _settings
from steerlens.steering.methods.directions import (
    Directions,
    detect,
    direction_targets,
    joined,
    text_scores,
)
from steerlens.steering.methods.fitting import budget_of_method, fit_concepts
from steerlens.steering.methods.labelled import label, token_vectors, tokenised
from steerlens.steering.methods.prompt import prompted
from steerlens.steering.methods.training import Budget
from tests.support.concepts import tiny_concepts, tiny_task

METHODS = loadable_parts("methods")

MakeSubject = Callable[..., Subject]

AXBENCH = {
    "LoRA": {
        "layers": (5, 10, 15, 20), "target": "o_proj", "rank": 4, "alpha": 32, "dropout": 0.05,
        "epochs": 24, "batch_size": 18, "accumulate": 2, "lr": 0.0009, "weight_decay": 0.0,
    },
    "LoReFT": {
        "layers": (5, 10, 15, 20), "rank": 4, "first": 5, "last": 5,
        "epochs": 24, "batch_size": 18, "accumulate": 2, "lr": 0.0009, "weight_decay": 0.0,
    },
    "Probe": {"epochs": 24, "batch_size": 12, "lr": 0.005, "weight_decay": 0.001},
    "ReFT-r1": {
        "epochs": 3, "batch_size": 6, "lr": 0.01, "weight_decay": 0.0, "top_k": 8,
        "latent_l1": 0.005,
    },
    "SSV": {"epochs": 3, "batch_size": 6, "lr": 0.01, "weight_decay": 0.0},
}  # fmt: skip
"""github.com/stanfordnlp/axbench: axbench/sweep/wuzhengx/2b/l20, where LsReFT is ReFT-r1,
LinearProbe Probe, and SteeringVector SSV; the dropout is in axbench/models/lora.py."""


@pytest.mark.parametrize("name", AXBENCH)
def test_methods_have_axbenchs_settings_by_default(name: str) -> None:
    config = {**METHODS, **EDITS}[name].Config()
    assert {setting: getattr(config, setting) for setting in AXBENCH[name]} == AXBENCH[name]


def test_the_second_feature_of_sae_a_has_rank_1() -> None:
    assert _settings("SAE-A", {"SAE-A": {"rank": 0}}).rank == 0
    assert [_settings(f"SAE-A {n}", None).rank for n in (2, 3)] == [1, 2]


def test_a_text_has_a_prefix_a_prompt_and_a_goal(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    text = tokenised(subject, LabelledText("the experience", " w20 w21"))
    assert text.ids == subject.to_tokens("the experience w20 w21")[0].tolist()
    assert (text.n_prefix, text.n_prompt) == (1, 3)
    with pytest.raises(SteerlensError, match="no token"):
        tokenised(subject, LabelledText("", ""))


def test_with_a_chat_template_the_prefix_is_what_all_prompts_share(
    tiny_subject: MakeSubject,
) -> None:
    subject = tiny_subject()
    with pytest.raises(SteerlensError, match="no chat template"):
        tokenised(subject, LabelledText("the", "w20"), chat_template=True)
    subject.lm.tokenizer.chat_template = (
        "<bos> w60 w61 {% for m in messages %}{{ m['content'] }} w62 {% endfor %}"
        "{% if add_generation_prompt %}w63{% endif %}"
    )
    text = tokenised(subject, LabelledText("the experience", "w20 w21"), chat_template=True)
    words = subject.lm.tokenizer.convert_ids_to_tokens(text.ids)
    assert words[-6:] == ["the", "experience", "w62", "w63", "w20", "w21"]
    assert words[text.n_prefix] == "the"
    assert words[text.n_prompt] == "w20"


def test_vectors_of_a_text_are_what_a_forward_of_it_alone_gives(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("gemma2")
    task = tiny_task(subject, tiny_concepts(2, shared=True))
    texts = task.labelled.texts
    assert len(texts) == 7 + 7 + 5  # the negatives are shared
    little = token_vectors(subject, texts, memory_budget=1)
    torch.testing.assert_close(little.x_TD, task.vectors.x_TD, rtol=0, atol=1e-5)
    for place in (0, 8, 15):
        _, cache = subject.lm.bridge.run_with_cache(torch.tensor([texts[place].ids]))
        x_LD = cache[subject.site.read][0]
        torch.testing.assert_close(task.vectors.whole(place), x_LD, rtol=0, atol=1e-5)
        torch.testing.assert_close(task.vectors.of([place]), x_LD[1:], rtol=0, atol=1e-5)
        torch.testing.assert_close(task.vectors.sum_ND[place], x_LD[1:].sum(0), rtol=0, atol=1e-4)
        assert task.vectors.length_N[place] == len(x_LD) - 1


def test_transcoders_are_refused(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "transcoder", site="ln2.hook_normalized")
    with pytest.raises(SteerlensError, match="writes where it reads"):
        token_vectors(subject, [], 1000)


def test_detection_is_the_auroc_of_the_largest_score(tiny_subject: MakeSubject) -> None:
    subject, concepts = tiny_subject(), tiny_concepts(2).concepts
    test = label(subject, concepts, test=True)
    vectors = token_vectors(subject, test.texts, 2**30)
    directions = Directions(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)))
    scores_NC = text_scores(subject, directions, vectors)
    found = detect(scores_NC, test)
    for c in range(2):
        largest = [
            float((vectors.whole(text)[1:] @ directions.vectors_CD[c]).max()) for text in test.of(c)
        ]
        is_positive = [1] * len(test.positives[c]) + [0] * len(test.negatives[c])
        assert found.auroc_C[c] == pytest.approx(roc_auc_score(is_positive, largest))
        assert found.max_activation_C[c] == pytest.approx(max(largest), rel=1e-5)
    rectified = text_scores(subject, replace(directions, rectified=True), vectors)
    torch.testing.assert_close(rectified, scores_NC.clamp(min=0))


def test_a_score_that_is_never_positive_has_axbenchs_default(tiny_subject: MakeSubject) -> None:
    test = label(tiny_subject(), tiny_concepts(1).concepts, test=True)
    found = detect(torch.full((len(test.texts), 1), -1.0), test)
    assert found.max_activation_C == [50.0]
    assert found.auroc_C == [0.5]


def test_all_methods_end_with_directions_and_their_detection(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "topk")
    concepts = tiny_concepts(n_texts=(20, 20), n_test=12)
    quick = {"RePS": {"epochs": 1}, "SAE-TS": {"vectors": 4, "prompts": 1, "tokens": 2}}
    configs = {name: method.Config(**quick.get(name, {})) for name, method in METHODS.items()}
    found = fit_concepts(subject, concepts, configs, RunContext())
    assert list(found) == list(METHODS)
    for fitted in found.values():
        assert fitted.directions.vectors_CD.shape == (3, 32)
        assert fitted.directions.vectors_CD.dtype == torch.float32
        assert len(fitted.detection.auroc_C) == len(fitted.detection.max_activation_C) == 3
    learnt = [one for one in found["DiffMean"].detection.auroc_C if one is not None]
    assert sum(learnt) / 3 > 0.6


@pytest.mark.parametrize(
    ("name", "rows"),
    [("Probe", 2 * 12), ("ReFT-r1", 2 * 12), ("SSV", 2 * 7), ("RePS", 2 * 7 * 4)],
)
def test_the_budget_is_what_training_takes(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    n_steps, step = [0], torch.optim.AdamW.step

    def counted(optimizer: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        n_steps[0] += 1
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    config = METHODS[name].Config(epochs=2, batch_size=3)
    concepts = tiny_concepts(1, n_texts=(7, 5))
    fit_concepts(tiny_subject("llama", "topk"), concepts, {name: config}, RunContext())
    budget = budget_of_method(METHODS[name], config, 7, 5)
    assert budget == (2, rows, n_steps[0], None)


def test_the_budget_of_what_trains_nothing_and_of_what_measures() -> None:
    assert budget_of_method(METHODS["DiffMean"], METHODS["DiffMean"].Config(), 7, 5) == Budget()
    exact = METHODS["Probe"].Config(solver="exact")
    assert budget_of_method(METHODS["Probe"], exact, 7, 5) == Budget()
    measuring = METHODS["SAE-TS"].Config(vectors=9)
    assert budget_of_method(METHODS["SAE-TS"], measuring, 7, 5) == Budget(vectors=9)
    several = loreft.Config(epochs=3, batch_size=2, accumulate=2)  # of 4 batches 2 a step
    assert budget_of_method(loreft, several, 7, 5) == Budget(3, 21, 6)


def test_few_concepts_at_a_time_give_the_same(tiny_subject: MakeSubject) -> None:
    subject, concepts = tiny_subject("llama", "topk"), tiny_concepts(shared=True)
    configs = {name: METHODS[name].Config() for name in ("DiffMean", "Probe", "PCA", "SAE-A")}
    whole = fit_concepts(subject, concepts, configs, RunContext())
    few = fit_concepts(subject, concepts, configs, RunContext(memory_budget=1))
    for name in configs:
        torch.testing.assert_close(
            few[name].directions.vectors_CD, whole[name].directions.vectors_CD, rtol=0, atol=1e-4
        )
        assert few[name].detection.auroc_C == whole[name].detection.auroc_C


def test_what_is_missing_is_said_before_the_model_reads(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, concepts = tiny_subject(), tiny_concepts()
    monkeypatch.setattr(type(subject.lm.bridge), "forward", None)
    run = RunContext()
    with pytest.raises(SteerlensError, match="did you mean 'DiffMean'"):
        fit_concepts(subject, concepts, {"DifMean": None}, run)
    empty = replace(concepts.concepts[1], positives=())
    broken = replace(concepts, concepts=(concepts.concepts[0], empty))
    diffmean = {"DiffMean": METHODS["DiffMean"].Config()}
    with pytest.raises(SteerlensError, match=r"concept 11 \('concept 1'\).* no positives"):
        fit_concepts(subject, broken, diffmean, run)
    other = replace(concepts.concepts[0], feature=None)
    with pytest.raises(SteerlensError, match="names no feature"):
        fit_concepts(subject, replace(concepts, concepts=(other,)), {"SAE": None}, run)


def test_concepts_without_texts_have_their_features(tiny_subject: MakeSubject) -> None:
    concepts = tiny_concepts()
    bare = replace(
        concepts,
        concepts=tuple(
            replace(one, positives=(), negatives=(), test_positives=(), test_negatives=())
            for one in concepts.concepts
        ),
    )
    found = fit_concepts(
        tiny_subject(),
        bare,
        {name: METHODS[name].Config() for name in ("SAE", "Random")},
        RunContext(),
    )
    assert found["SAE"].detection.auroc_C == [None, None, None]


@pytest.mark.parametrize("kind", ["direction", "feature"])
def test_texts_are_steered_by_adding_factor_max_activation_and_vector(
    tiny_subject: MakeSubject, kind: str
) -> None:
    subject = tiny_subject()
    vectors_CD = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    features_C = None
    if kind == "feature":
        features_C = torch.tensor([5, 9, 30])
        vectors_CD = subject.sae.W_dec[features_C]
    directions = joined([Directions(vectors_CD[:2]), Directions(vectors_CD[2:])])
    if features_C is not None:
        directions = replace(directions, features_C=features_C)
    concept_B, factor_B, largest_C = [2, 0, 1], [0.5, 2.0, 0.0], [3.0, 4.0, 7.0]
    targets = direction_targets(subject, directions, concept_B, factor_B, largest_C)
    hooks = SteeringHooks(subject, Operation(unit="max_activation"), targets, "all")
    prompt = subject.to_tokens("the experience w20")[0].tolist()
    stopping = Stopping(subject.lm.tokenizer, set(), [], 4)
    texts = decode(
        subject, [prompt], torch.zeros(3, dtype=torch.int64), hooks, [0, 1, 2],
        Sampling(temperature=0.0), stopping,
    )  # fmt: skip
    for text, concept, factor in zip(texts, concept_B, factor_B, strict=True):
        added_D = factor * largest_C[concept] * vectors_CD[concept]
        ids = list(prompt)
        for _ in range(4):
            hook = (subject.site.write, partial(lambda x, hook, more: x + more, more=added_D))
            logits = subject.lm.bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=[hook])
            ids.append(int(logits[0, -1].argmax()))
        assert text.token_ids == ids[len(prompt) :]


def test_a_prompt_asks_for_the_concept_in_words() -> None:
    concept = tiny_concepts().concepts[0]
    asked = prompted(concept, "Write a poem.", are_instructions=True)
    assert asked.endswith("\n\nWrite a poem.")
    assert "concept 0" in asked
    assert prompted(concept, "In my", False) == "This text is about concept 0. In my"
