"""`steerlens export DIR`: a finished run's steering feature, in every format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.analysis.toward import best_toward
from steerlens.config.compose import read_config
from steerlens.config.settings import parse_steering, parse_subject
from steerlens.errors import SteerlensError, unknown
from steerlens.results import STEERING, features_alone
from steerlens.runs.models import steering_of
from steerlens.storage.files import make_folder

if TYPE_CHECKING:
    import pandas as pd

EXPORT_FOLDER = "export"
KEYS = ("layer", "feature", "factor")


def export_run(folder: Path, arguments: list[str]) -> list[Path]:
    """Write the vector of one steered feature of the run in `folder`; gives the files.

    Args:
        folder: of a run that steered.
        arguments: `layer=L feature=I factor=S`; by default the feature that adds most of the run's
            concept's tokens to texts, else with the most success, at its best factor.

    Raises:
        SteerlensError: for a run that didn't steer or not by adding, a feature that it didn't steer
            with, or one without a best factor.
    """
    arguments_of_row = _numbers(arguments)
    config = read_config(folder)
    row = _row(STEERING.read(folder), arguments_of_row)
    if config.steer.operator != "add" or config.steer.unit != "a_max":
        raise SteerlensError(
            f"{folder} steered with operator {config.steer.operator} in units of "
            f"{config.steer.unit}; exports can only add a multiple of a_max."
        )
    factor = arguments_of_row.get("factor", row["best_factor"])
    if not isinstance(factor, int | float):
        raise SteerlensError(
            f"layer {row['layer']}, feature {row['feature']} has no best factor: give factor=..."
        )
    from steerlens.engine.subject import load_subjects
    from steerlens.runs.export import measured_a_max, steering_vector
    from steerlens.runs.export.lm_eval import export_lm_eval
    from steerlens.runs.export.tensors import export_safetensors, export_snippet

    subject = next(load_subjects(parse_subject(config).of_layers([row["layer"]])))
    steering = steering_of(subject.lm, parse_steering(config))
    prompts, chat = list(steering.prompts), steering.generation.chat_template
    a_max = measured_a_max(subject, prompts, chat)
    vector = steering_vector(subject, row["feature"], float(factor), a_max, prompts, chat)
    name = f"layer_{row['layer']}_feature_{row['feature']}"
    out = make_folder(folder / EXPORT_FOLDER)
    paths = [out / f"{name}.safetensors", out / f"{name}.pt", out / "steer.py"]
    export_safetensors(paths[0], [vector])
    export_snippet(paths[2])
    try:
        export_lm_eval(paths[1], [vector])
    except SteerlensError:  # the first block's input, which this format can't say
        del paths[1]
    return paths


def _numbers(arguments: list[str]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for word in arguments:
        key, _, text = word.partition("=")
        if key not in KEYS:
            raise unknown("argument of steerlens export", key, KEYS)
        try:
            numbers[key] = float(text) if key == "factor" else int(text)
        except ValueError as error:
            raise SteerlensError(f"{word!r} must be a number.") from error
    return numbers


def _row(steering: pd.DataFrame, arguments: Mapping[str, Any]) -> dict[str, Any]:
    rows = features_alone(steering)
    for key in ("layer", "feature"):
        if key in arguments:
            rows = rows.loc[rows[key] == arguments[key]]
    if rows.empty:
        typed = " ".join(f"{key}={value}" for key, value in arguments.items())
        raise SteerlensError(f"the run didn't steer with {typed or 'any feature'}.")
    if any(rows["concept_success"].notna().tolist()):
        best = best_toward(rows)
    else:
        order = ["concept_score", "success_20", "output_score"]
        best = rows.sort_values(order, ascending=False, na_position="last")
    return best.head(1).to_dict("records")[0]
