"""Figures of a run, drawn from its tables alone: redrawing one needs no model.

To add a figure, write a function from the table of features to a `Figure` (or None when the table
lacks what it shows) and enter it in `FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from steerlens.figures import input_output, output_score
from steerlens.figures.style import look
from steerlens.files import atomic_write, make_folder

if TYPE_CHECKING:
    import pandas as pd

FIGURES_FOLDER = "figures"

FIGURES: dict[str, Callable[[pd.DataFrame], Figure | None]] = {
    "output_score_by_layer": output_score.by_layer,
    "output_score_distribution": output_score.distribution,
    "input_output_by_layer": input_output.by_layer,
    "input_against_output": input_output.against,
}


def draw_all(frame: pd.DataFrame, folder: Path) -> dict[str, list[Path]]:
    """Draw every figure that `frame` has data for; gives the files (PNG, PDF) of each."""
    target = Path(folder) / FIGURES_FOLDER
    drawn = {}
    for name, draw in FIGURES.items():
        with look():
            figure = draw(frame)
            if figure is not None:
                drawn[name] = save(figure, make_folder(target), name)
    return drawn


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `figure` as PNG and PDF, byte for byte the same each time."""
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        # Rendered first: a full disk then is an error of the write, not one inside Matplotlib.
        buffer = BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        path = folder / f"{name}.{suffix}"
        with atomic_write(path) as file:
            file.write(buffer.getvalue())
        paths.append(path)
    return paths
