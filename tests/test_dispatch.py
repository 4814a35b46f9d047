"""A name that is let through by its list, and that nothing carries out, is refused, never run as
another one: every choice by name in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerlens import SteerlensError
from steerlens.analysis.factors import merits
from steerlens.analysis.objectives import objective
from steerlens.analysis.ratings import numbers
from steerlens.config.registry import KINDS, load_part, parts_of
from steerlens.config.schema import (
    CONTROLS,
    OBJECTIVES,
    POSITIONS,
    ChoiceConfig,
    ConceptsConfig,
    CorpusConfig,
)
from steerlens.data.concept_sets import Concept, ConceptSet
from steerlens.data.concept_sets.instructions import with_instructions
from steerlens.data.concept_sets.load import load_concepts
from steerlens.data.corpus import texts
from steerlens.engine.generation.targets import row_targets
from steerlens.engine.intervention import Operation, Targets, encode
from steerlens.engine.intervention.hooks import POLICIES, SteeringHooks
from steerlens.engine.subject import Subject
from steerlens.scores import RunContext, activation
from steerlens.scores import input as input_score

OTHER = "added_to_its_list_alone"


def targets(subject: Subject, control: str) -> Targets:
    rows = pd.DataFrame({"feature": [5], "control": [control], "together": [""], "factor": [1.0]})
    return row_targets(subject, rows, None, 0)


def normalised(subject: Subject) -> None:
    sae: Any = copy.copy(subject.sae)
    sae.cfg = copy.copy(sae.cfg)
    sae.cfg.normalize_activations = OTHER
    x_BLD = torch.zeros(1, 1, sae.cfg.d_in)
    encode(sae, x_BLD, x_BLD)


CHOICES: dict[str, Callable[[Any], object]] = {
    "operator": lambda subject: Operation(operator=OTHER),
    "unit": lambda subject: Operation(unit=OTHER),
    "positions": lambda subject: SteeringHooks(subject, Operation(), targets(subject, ""), OTHER),
    "control": lambda subject: targets(subject, OTHER),
    "rule": lambda subject: merits({1.0: (1.0, 1.0)}, ChoiceConfig(rule=OTHER)),
    "objective": lambda subject: objective(OTHER, pd.DataFrame(), {"steering": None}),
    "aggregation": lambda subject: numbers(pd.DataFrame({"a": [1], "b": [1]}), ["a"], ["b"], OTHER),
    "source of the input score": lambda subject: input_score.score(
        subject, np.array([1]), input_score.Config(source=OTHER), RunContext()
    ),
    "source of the activation score": lambda subject: activation.score(
        subject, np.array([1]), activation.Config(source=OTHER), RunContext()
    ),
    "concepts": lambda subject: load_concepts(
        ConceptsConfig(name="mine", source=OTHER, path="x"), 0, 0
    ),
    "instructions": lambda subject: with_instructions(
        ConceptSet("mine", (Concept(1, "water"),), are_instructions=True), OTHER
    ),
    "corpus": lambda subject: list(texts(CorpusConfig(name="mine", source=OTHER, path="x"))),
    "normalisation": normalised,
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_name_that_nothing_carries_out_is_refused(
    choice: str, tiny_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in (input_score.Config, activation.Config):
        monkeypatch.setattr(config, "SOURCES", (*config.SOURCES, OTHER))
    with pytest.raises(SteerlensError, match=OTHER):
        CHOICES[choice](tiny_subject())


def test_every_position_control_and_objective_of_a_list_is_carried_out(
    tiny_subject: Callable[..., Subject],
) -> None:
    subject = tiny_subject()
    assert set(POLICIES) == set(POSITIONS)
    for control in ("", *CONTROLS):
        assert len(targets(subject, control)) == 1
    features = pd.DataFrame({"output_score": [0.5], "input_score": [0.5]})
    summary = {"overall": {"output_score_at_least_0.1": 1.0}, "hybrids": None, "steering": None}
    for name in OBJECTIVES:
        assert isinstance(objective(name, features, summary), float)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_can_be_loaded_and_an_unknown_one_is_refused(kind: str) -> None:
    for name in parts_of(kind):
        assert (load_part(kind, name).__doc__ or "").strip(), f"{kind}: {name} says what it does"
    with pytest.raises(SteerlensError, match=OTHER):
        load_part(kind, OTHER)
