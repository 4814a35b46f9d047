"""Figures of a run, drawn from its tables alone: redrawing one needs no model.

To add a figure, write a function from the table of features to a `Figure` (or None when the table
lacks what it shows) and enter it in `FIGURES`; one from the steering table goes to
`STEERING_FIGURES`. Figures of texts and PMI are in `roles`, of words in `toward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from steerlens.report.figures import input_output, output_score, roles, threshold, toward
from steerlens.report.figures.style import look, save
from steerlens.results.folder import RunTables

if TYPE_CHECKING:
    import pandas as pd

FIGURES_FOLDER = "figures"

Draw = Callable[["pd.DataFrame"], Figure | None]

FIGURES: dict[str, Draw] = {
    "output_score_by_layer": output_score.by_layer,
    "output_score_distribution": output_score.distribution,
    "input_output_by_layer": input_output.by_layer,
    "input_against_output": input_output.against,
}

BESIDE_NULL = {
    "output_score_by_layer": output_score.by_layer,
    "output_score_distribution": output_score.distribution,
    "input_output_by_layer": input_output.by_layer,
}
"""Those that show random directions beside the features, where these were scored."""

STEERING_FIGURES: dict[str, Draw] = {
    "success_by_threshold": threshold.by_threshold,
    "success_by_criterion": threshold.by_criterion,
}

LATE_LAYERS = "_late_layers"
"""What is added to a figure's name when it shows late layers only."""


def draw_all(tables: RunTables, folder: Path) -> dict[str, list[Path]]:
    """Draw every figure that the tables have data for; gives the files (PNG, PDF) of each."""
    target = Path(folder) / FIGURES_FOLDER
    if len(tables.words):
        return _draw_words(tables, folder)
    texts = (tables.steering, tables.generations, target)
    drawn = [roles.draw_input_and_output(*texts), roles.draw_hybrids(*texts)]
    if tables.pmi is not None:
        drawn.append(roles.draw_pmi(tables.pmi, target))
    return {
        **_draw(_score_figures(tables), tables.features, folder),
        **draw_steering(tables.steering, folder, tables.late_from),
        **{paths[0].stem: paths for paths in drawn if paths},
    }


def _score_figures(tables: RunTables) -> dict[str, Draw]:
    """Return the figures of scores, random directions beside them."""
    null = {name: partial(draw, null=tables.null_scores) for name, draw in BESIDE_NULL.items()}
    return FIGURES | null


def _draw_words(tables: RunTables, folder: Path) -> dict[str, list[Path]]:
    """Return the figures of a run toward words: of their features, and of the scores where all have
    one.

    Features that were steered with because of a word say nothing of features in general.
    """

    def by_factor(steering: pd.DataFrame) -> Figure | None:
        return toward.by_steering_factor(steering, tables.generations)

    of_all = any(tables.features["concept_score"].isna().tolist())
    by_concept: dict[str, Draw] = {"concept_score_by_layer": toward.score_by_layer}
    of_features = _score_figures(tables) if of_all else by_concept
    return {
        **_draw({"concept_by_factor": by_factor}, tables.steering, folder),
        **_draw(of_features, tables.features, folder),
    }


def draw_steering(
    steering: pd.DataFrame, folder: Path, late_from: int | None = None
) -> dict[str, list[Path]]:
    """Return the same for the figures of the steering table.

    Where only some of its layers are late (`late_from` on), these are drawn once more by
    themselves, as in Figure 5.
    """
    drawn = _draw(STEERING_FIGURES, steering, folder)
    if late_from is None or not {False, True} <= set(steering["layer"] >= late_from):
        return drawn
    late = {f"{name}{LATE_LAYERS}": draw for name, draw in STEERING_FIGURES.items()}
    return drawn | _draw(late, steering.loc[steering["layer"] >= late_from], folder)


def _draw(figures: Mapping[str, Draw], frame: pd.DataFrame, folder: Path) -> dict[str, list[Path]]:
    target = Path(folder) / FIGURES_FOLDER
    drawn = {}
    for name, draw in figures.items():
        with look():
            figure = draw(frame)
            if figure is not None:
                drawn[name] = save(figure, target, name)
    return drawn
