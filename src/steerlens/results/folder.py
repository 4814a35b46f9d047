"""The tables of a run's folder, with what its settings say about showing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from steerlens.config.parse import parse_layers
from steerlens.config.schema import ChoiceConfig, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.results import (
    CAPABILITY,
    CARDS,
    CONCEPTS,
    COVERAGE,
    EXAMPLES,
    FEATURES,
    GENERATIONS,
    NEIGHBOURS,
    NULL_SCORES,
    RATINGS,
    SAES,
    STEERING,
    TABLES,
    WORDS,
    Table,
)
from steerlens.results.earlier import in_present_settings
from steerlens.results.pmi import PMI_FILE, Pmi
from steerlens.results.reference import REFERENCE_FILE, Reference
from steerlens.results.status import read_status
from steerlens.storage.files import CONFIG_FILE, read_json
from steerlens.storage.provenance import PROVENANCE_FILE

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T", ChoiceConfig, StudyConfig)

ASIDE = ("paths", "tracking", "debug", "plan", "name", "memory_budget", "hydra", "chosen")
"""Settings that don't change what a run finds."""


@dataclass(frozen=True)
class RunTables:
    """All that a run's figures, report, summary and tracking are made from.

    The tables of steering are empty where nothing was steered.
    """

    features: pd.DataFrame
    generations: pd.DataFrame = field(default_factory=lambda: GENERATIONS.frame([]))
    steering: pd.DataFrame = field(default_factory=lambda: STEERING.frame([]))
    capability: pd.DataFrame = field(default_factory=lambda: CAPABILITY.frame([]))
    """Empty where no tasks were asked for."""
    saes: pd.DataFrame = field(default_factory=lambda: SAES.frame([]))
    null_scores: pd.DataFrame = field(default_factory=lambda: NULL_SCORES.frame([]))
    """Empty where no output score was computed, or none of random directions."""
    coverage: pd.DataFrame = field(default_factory=lambda: COVERAGE.frame([]))
    """Empty where no words were asked for."""
    concepts: pd.DataFrame = field(default_factory=lambda: CONCEPTS.frame([]))
    ratings: pd.DataFrame = field(default_factory=lambda: RATINGS.frame([]))
    """Empty where no concepts were steered toward."""
    words: pd.DataFrame = field(default_factory=lambda: WORDS.frame([]))
    """Empty where no feature was looked for that steers toward a word."""
    cards: pd.DataFrame = field(default_factory=lambda: CARDS.frame([]))
    """Empty in runs that have no SAE loaded."""
    examples: pd.DataFrame = field(default_factory=lambda: EXAMPLES.frame([]))
    """Texts that features fire on; empty where no texts were read."""
    neighbours: pd.DataFrame = field(default_factory=lambda: NEIGHBOURS.frame([]))
    """Empty in runs that have no SAE loaded."""
    chat_template: bool | None = None
    """Whether prompts were requests inside the model's chat template; null = not known."""
    command: str | None = None
    """As it was typed; null = not known."""
    choice: ChoiceConfig | None = None
    """How best factors were chosen; null = not known."""
    operator: str | None = None
    """How activations were edited (`steer.operator`); null = not known."""
    lens: str | None = None
    """What told the tokens that features promote (`lens`); null = not known."""
    late_from: int | None = None
    """The first late layer; null = not known."""
    objective: str | None = None
    """The number that the run was asked for."""
    study: StudyConfig = field(default_factory=StudyConfig)
    """The question that the run was asked."""
    pmi: Pmi | None = None
    """Null where no steered feature has both scores."""
    reference: Reference | None = None
    """The published scores that the run is laid beside."""
    notes: tuple[str, ...] = ()
    """What a reader has to know of the subject, in sentences."""
    unfinished: str | None = None
    """How far the run has come; null where it came to its end."""

    def of_layers(self, layers: Collection[int]) -> RunTables:
        """Return the rows of `layers` only."""
        frames = {
            name: getattr(self, name) for name, table in TABLE_OF.items() if "layer" in table.keys
        }
        rows = {
            name: frame.loc[frame["layer"].isin(list(layers))] for name, frame in frames.items()
        }
        return dataclasses.replace(
            self, **{name: frame.reset_index(drop=True) for name, frame in rows.items()}
        )


TABLE_OF: Mapping[str, Table] = {
    "null_scores" if table is NULL_SCORES else table.file.removesuffix(".parquet"): table
    for table in TABLES
}
"""The tables of a run by the names that `RunTables` has for them."""


def read_tables(folder: Path) -> RunTables:
    """Return what lies in the folder of a run.

    Raises:
        SteerlensError: there is no table of features, or a file can't be read.
    """
    settings = _settings(folder)
    choice = settings.get("choice")
    provenance = read_json(folder / PROVENANCE_FILE) or {}
    beside_features: dict[str, Any] = {
        name: table.read(folder) if (folder / table.file).is_file() else table.frame([])
        for name, table in TABLE_OF.items()
        if table is not FEATURES
    }
    return RunTables(
        features=FEATURES.read(folder),
        **beside_features,
        chat_template=provenance.get("chat_template"),
        command=provenance.get("command"),
        choice=_known_settings(ChoiceConfig, choice) if choice else None,
        operator=(settings.get("steer") or {}).get("operator"),
        lens=(settings.get("lens") or {}).get("name"),
        late_from=_late_from(settings.get("model") or {}),
        objective=settings.get("objective"),
        study=_known_settings(StudyConfig, settings.get("study") or {}),
        pmi=Pmi.read(folder) if (folder / PMI_FILE).is_file() else None,
        reference=Reference.read(folder) if (folder / REFERENCE_FILE).is_file() else None,
        notes=tuple(map(str, provenance.get("notes", []))),
    )


def unfinished(folder: Path) -> str | None:
    """Say how far the run in `folder` has come; None where its results are whole.

    An earlier run's results that the last one hasn't replaced are told as such.
    """
    status = read_status(folder)
    state = status.get("state", "done")
    if state == "done":
        return None
    why = status.get("reason") or (
        "it is under way" if "pid" in status else "it was killed, or still runs"
    )
    if earlier := status.get("earlier"):
        ended = f", which ended at {earlier['finished']}" if "finished" in earlier else ""
        if earlier.get("state", "done") != "done":
            ended = f", {_layers_there(folder, earlier)}"
        return f"the last run {state} ({why}); what is here is of the run before{ended}"
    return "; ".join(filter(None, (_layers_there(folder, status), str(why))))


def _layers_there(folder: Path, status: Mapping[str, Any]) -> str | None:
    """Return how many layers of the run of `status` have results; None if none has."""
    scored, steered = _n_layers(FEATURES, folder), _n_layers(STEERING, folder)
    if not scored:
        return None
    of = f" of {status['layers']}" if "layers" in status else ""
    steering = f" scored, {steered} steered" if steered else ""
    return f"unfinished: {scored}{of} layers{steering}"


def _n_layers(table: Table, folder: Path) -> int:
    try:
        return len(set(table.read(folder)["layer"].tolist()))
    except SteerlensError:
        return 0


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SteerlensError(f"{path} can't be read: it is no YAML file.") from error
    return told_in_short(in_present_settings(settings)) if isinstance(settings, dict) else {}


def told_in_short(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with those of a single score directly under `score`.

    Earlier versions have saved them like that, and labels and messages have them so.
    """
    score = settings.get("score")
    of_scores = list(score.values()) if isinstance(score, Mapping) else []
    if len(of_scores) == 1 and isinstance(of_scores[0], Mapping):
        return {**settings, "score": of_scores[0]}
    return dict(settings)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the resolved configuration of the run in `folder`; empty where it can't be read."""
    try:
        return _settings(folder)
    except SteerlensError:
        return {}


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List in words the settings of which a run's results depend on and both know two values."""
    changes: list[str] = []
    if not prefix:
        old, new = told_in_short(old), told_in_short(new)
    for key in new.keys() & old.keys():
        before, after = old[key], new[key]
        if before == after or (not prefix and key in ASIDE):
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += changed_settings(before, after, f"{prefix}{key}.")
        else:
            changes.append(f"{prefix}{key}={_name(before)} (now {_name(after)})")
    return sorted(changes)


def _name(value: Any) -> Any:
    """Return a value in words: of a group its name."""
    return value.get("name") if isinstance(value, Mapping) else value


def _known_settings(kind: type[T], settings: dict[str, Any]) -> T:
    """Return the settings that this version knows, as their dataclass `kind`."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: settings[name] for name in names if name in settings})


def _late_from(model: dict[str, Any]) -> int | None:
    """Return the first late layer; None where the settings don't say how many layers there are."""
    first, n_layers = model.get("late_from"), model.get("n_layers")
    return parse_layers("late", n_layers)[0] if first is None and n_layers else first
