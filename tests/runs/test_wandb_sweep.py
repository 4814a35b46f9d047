"""The W&B sweep file: valid by W&B's documented rules, and its agent's command composes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from steerlens.config.compose import compose
from steerlens.runs.preflight import check
from tests.support.shipped import MODEL, save_distribution

FILE = Path(__file__).parents[2] / "experiments" / "sweeps" / "wandb.yaml"

NUMBER = {"type": "number"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["method", "parameters"],
    "additionalProperties": False,
    "properties": {
        **{
            key: {"type": "string"}
            for key in ("program", "project", "entity", "name", "description")
        },
        "method": {"enum": ["grid", "random", "bayes"]},
        "metric": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "goal": {"enum": ["minimize", "maximize"]},
                "target": NUMBER,
            },
        },
        "parameters": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "oneOf": [
                    {"required": ["value"], "properties": {"value": {}}, "maxProperties": 1},
                    {"required": ["values"], "properties": {"values": {"minItems": 1}}},
                    {
                        "required": ["min", "max"],
                        "properties": {
                            "distribution": {
                                "enum": ["uniform", "int_uniform", "log_uniform_values"]
                            },
                            "min": NUMBER,
                            "max": NUMBER,
                        },
                    },
                ]
            },
        },
        "run_cap": {"type": "integer", "minimum": 1},
        "command": {"type": "array", "items": {"type": "string"}},
    },
    # Bayes optimises something.
    "if": {"properties": {"method": {"const": "bayes"}}},
    "then": {"required": ["metric"]},
}


@pytest.fixture
def sweep() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def words(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """What an agent types for chosen values; macros as W&B replaces them."""
    arguments = [f"{key}={value}" for key, value in values.items()]
    found: list[str] = []
    for word in sweep["command"]:
        found += arguments if word == "${args_no_hyphens}" else [word]
    assert found[:2] == ["${env}", "steerlens"]
    return found[2:]


def ends(parameter: dict[str, Any]) -> list[Any]:
    if "value" in parameter:
        return [parameter["value"]] * 2
    if "values" in parameter:
        return [parameter["values"][0], parameter["values"][-1]]
    return [parameter["min"], parameter["max"]]


def test_the_file_is_valid(sweep: dict[str, Any]) -> None:
    jsonschema.validate(sweep, SCHEMA)


def test_a_wrong_file_is_not_valid(sweep: dict[str, Any]) -> None:
    for wrong in (
        {"method": "best"},
        {"parameters": {}},
        {"parameters": {"layer": {"valves": []}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(sweep | wrong, SCHEMA)


@pytest.mark.parametrize("end", [0, 1])
def test_the_agents_command_composes_for_all_ends_of_the_values(
    sweep: dict[str, Any], end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_distribution(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    values = {key: ends(parameter)[end] for key, parameter in sweep["parameters"].items()}
    config = compose([*MODEL, *words(sweep, values)])
    check(config)
    assert config.objective == "success_per_perplexity"
    assert config.tracking.mode == "online"


def test_the_metric_is_one_that_runs_log(sweep: dict[str, Any]) -> None:
    from steerlens.analysis.summary import summarise
    from steerlens.report.tracking.tables import flat
    from tests.support.frames import tables

    one = tables()
    logged = flat(summarise(dataclasses.replace(one, objective="success")))
    assert sweep["metric"]["name"] in logged
    assert re.fullmatch(r"objective\.value", sweep["metric"]["name"])
