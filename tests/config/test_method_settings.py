"""Settings of steering methods, known and checked without importing a method."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from typing import Any

import pytest

from steerlens.config.compose import compose
from steerlens.config.method_settings import check_method_settings, settings_class
from steerlens.config.registry import load_part, parts_of
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check


@pytest.mark.parametrize(
    ("method", "typed", "told"),
    [
        ("SSV", {"epochs": 0}, "SSV.epochs=0 must be a whole number of at least 1"),
        ("SSV", {"epochs": "x"}, "SSV.epochs=x must be a whole number"),
        ("ReFT-r1", {"batch_size": True}, "ReFT-r1.batch_size=True must be a whole number"),
        ("ReFT-r1", {"lr": -1.0}, "ReFT-r1.lr=-1.0 must be a number of at least 0"),
        ("LoRA", {"lr": math.nan}, "LoRA.lr=nan must be a number"),
        ("LoRA", {"layers": []}, "LoRA.layers=[] must be a list of layers"),
        ("LoReFT", {"layers": 3}, "LoReFT.layers=3 must be a list of layers"),
        ("LAT", {"orient": 1}, "LAT.orient=1 must be true or false"),
        ("RePS", {"dropout": 1.0}, "RePS.dropout=1.0 must be below 1"),
        ("SAE-TS", {"prompts": 1000}, "SAE-TS.prompts=1000 must be at most "),
        ("SAE-F1", {"min_output_score": 2}, "SAE-F1.min_output_score=2 must be at most 1"),
        ("DiffMean", {"epoch": 2}, "DiffMean has no setting 'epoch'"),
        ("RePS", {"epoch": 2}, "RePS has no setting 'epoch'; did you mean epochs?"),
        ("Probe", {"solver": "exakt"}, "unknown solver of Probe 'exakt'; did you mean 'exact'?"),
        ("Probe", {"solver": 1}, "unknown solver of Probe '1'; valid: adamw, exact."),
        ("Prompt", {"words": 2}, "Prompt has no settings"),
    ],
)
def test_what_cannot_work_is_told_without_torch(
    method: str, typed: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SteerlensError, match=re.escape(told)):
        check_method_settings({method: typed})


def test_a_run_is_refused_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    config = compose(["experiment=table1_smollm2", "concepts.settings.RePS.epochs=0"])
    with pytest.raises(SteerlensError, match=r"RePS\.epochs=0 must be a whole number"):
        check(config)


def test_what_can_work_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    check_method_settings({"LoReFT": {"first": 0, "layers": [1]}, "SAE-A": {"rank": 0}, "SSV": {}})


@pytest.mark.parametrize("method", [*parts_of("methods"), "LoReFT", "LoRA"])
def test_settings_are_those_of_the_method_itself(method: str) -> None:
    from steerlens.steering.methods.arms import EDITS

    part = EDITS[method] if method in EDITS else load_part("methods", method)
    ours = settings_class(method)
    assert ours is not None
    of_classes = [
        [(field.name, field.type, field.metadata) for field in dataclasses.fields(kind)]
        for kind in (ours, part.Config)
    ]
    assert of_classes[0] == of_classes[1]
    assert dataclasses.asdict(ours()) == dataclasses.asdict(part.Config())
